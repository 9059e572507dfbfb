"""A slide that records its scanned area: a Leica SCN file as OpenSlide reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NM_PER_PX = 500
CORNER_PX0, SIZE_PX0, WHOLE_PX0 = (640, 384), (1024, 768), (2048, 1536)
MARK_PX0 = (896, 512, 1152, 640)
"""Left, top, right, bottom of a dark rectangle, level-0 pixels of the whole slide."""


def _image(name: str, ifd: int, size_px: tuple[int, int], view_px0: tuple[int, int], corner: tuple[int, int]) -> str:
    view, offset = ([value * NM_PER_PX for value in pair] for pair in (view_px0, corner))
    return (
        f'<image name="{name}" uuid="u{ifd}"><creationDate>2012-05-12T09:09:02.2Z</creationDate>'
        '<device model="Leica SCN400;Leica SCN" version="1.4.0.9691"/>'
        f'<pixels sizeX="{size_px[0]}" sizeY="{size_px[1]}">'
        f'<dimension sizeX="{size_px[0]}" sizeY="{size_px[1]}" r="0" ifd="{ifd}"/></pixels>'
        f'<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


def write_scn(path: Path) -> None:
    """Write the slide: 2048 x 1536 px at 0.5 um per pixel, scanned in 1024 x 768 px from (640, 384)."""
    from tifffile import TiffWriter

    macro_px = (WHOLE_PX0[0] // 16, WHOLE_PX0[1] // 16)
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="x">'
        f'<collection name="c" uuid="y" sizeX="{WHOLE_PX0[0] * NM_PER_PX}" sizeY="{WHOLE_PX0[1] * NM_PER_PX}" '
        'sizeZ="1"><barcode>MA==</barcode>'
        + _image("macro", 0, macro_px, WHOLE_PX0, (0, 0))
        + _image("main", 1, SIZE_PX0, SIZE_PX0, CORNER_PX0)
        + "</collection></scn>"
    )
    main = np.full((SIZE_PX0[1], SIZE_PX0[0], 3), 230, dtype=np.uint8)
    left, top, right, bottom = (value - CORNER_PX0[index % 2] for index, value in enumerate(MARK_PX0))
    main[top:bottom, left:right] = (120, 40, 140)
    common = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    with TiffWriter(path, bigtiff=True) as file:
        macro = np.full((macro_px[1], macro_px[0], 3), 240, dtype=np.uint8)
        file.write(macro, tile=(64, 64), description=description, software="test", **common)
        scale = (1e7 / NM_PER_PX, 1e7 / NM_PER_PX)
        file.write(main, tile=(256, 256), resolution=scale, resolutionunit="CENTIMETER", **common)
