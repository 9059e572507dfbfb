"""Where the tiles of a tiled TIFF are: the index that tifffile reads, reduced to what decoding needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from mhim.errors import SlideError
from mhim.slides.codecs import Decoder, decoder_of

ASPECT_TOLERANCE = 0.02
DAMAGED = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, OverflowError)
IN_STRIPS = "stored in strips"


@dataclass(frozen=True, eq=False)
class TiffLevel:
    """One level of a pyramid.

    Attributes:
        size_px: (width, height) of the level.
        tile_px: (width, height) of a stored tile.
        downsample: level-0 pixels per pixel of this level; (x, y).
        offsets, counts: (tiles,) int64, where the bytes of each tile are; a count of 0 is a tile that is not stored.
        decoder: turns the bytes of a tile into pixels.
    """

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    downsample: tuple[float, float]
    offsets: NDArray[np.int64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)
    decoder: Decoder = field(repr=False)

    @cached_property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.size_px[0] // self.tile_px[0])

    @cached_property
    def rows(self) -> int:
        """Tiles in a column."""
        return -(-self.size_px[1] // self.tile_px[1])


@dataclass(frozen=True)
class TiffIndex:
    """The pyramid of a TIFF file and what it says about its scale.

    Attributes:
        levels: finest first.
        mpp_xy: (x, y) micrometres per level-0 pixel in the file's OME metadata, or None.
        resolution_mpp_xy: the same from the TIFF resolution tags of level 0, or None.
    """

    levels: tuple[TiffLevel, ...]
    mpp_xy: tuple[float, float] | None
    resolution_mpp_xy: tuple[float, float] | None


def read_index(path: Path) -> TiffIndex:
    """The index of a file whose first image is a tiled RGB pyramid, level by level or in SubIFDs.

    Raises:
        SlideError: not such a file, or an index that is damaged.
    """
    try:
        with tifffile.TiffFile(path) as file:
            pages = list(_pyramid(file))
            levels = tuple(_level(page, pages[0]) for page in pages)
            end = max(int((level.offsets + level.counts).max()) for level in levels)
            if end > path.stat().st_size:
                raise SlideError(f"cut short: {path.stat().st_size} bytes of at least {end}; copy the file again")
            return TiffIndex(levels, ome_mpp(file), resolution_mpp(pages[0]))
    except SlideError as error:
        raise SlideError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise SlideError(f"{path}: its TIFF index cannot be read: {error}") from None


def read_scale(path: Path) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """(x, y) micrometres per pixel in the OME metadata of a TIFF file, and in its resolution tags.

    Raises:
        SlideError: not a TIFF file that can be read.
    """
    try:
        with tifffile.TiffFile(path) as file:
            return ome_mpp(file), resolution_mpp(file.pages[0])
    except DAMAGED as error:
        raise SlideError(f"{path}: its TIFF index cannot be read: {error}") from None


def resolution_mpp(page: Any) -> tuple[float, float] | None:
    """(x, y) micrometres per pixel in the resolution tags of a TIFF page, or None where they name no unit."""
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    values = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if um_per_unit is None or any(value is None or not value[0] or not value[1] for value in values):
        return None
    x, y = (um_per_unit * value[1] / value[0] for value in values)
    return x, y


def _pyramid(file: tifffile.TiffFile) -> Iterator[Any]:
    """The pages of the first image, finest first: the first page, its SubIFDs, and smaller tiled pages of its shape."""
    first: Any = file.pages[0]
    problem = _problem(first)
    if problem:
        raise SlideError(f"not a pyramid of RGB tiles ({problem})")
    others: list[Any] = list(first.pages) if first.subifds else [file.pages[i] for i in range(1, len(file.pages))]
    smaller = [page for page in others if not _problem(page) and _is_reduced(page, first)]
    yield first
    width = first.imagewidth
    for page in sorted(smaller, key=lambda page: -page.imagewidth):
        if page.imagewidth < width:
            width = page.imagewidth
            yield page


def _problem(page: Any) -> str | None:
    """Why the tiles of a page cannot be read directly, or None."""
    if not page.is_tiled:
        return IN_STRIPS
    if page.samplesperpixel != 3 or page.bitspersample != 8 or page.planarconfig != 1 or page.photometric not in (2, 6):
        return "not 8-bit RGB"
    if page.imagedepth != 1 or decoder_of(page) is None:
        return f"compression {page.compression}"
    return None


def _is_reduced(page: Any, first: Any) -> bool:
    x, y = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
    slack = ASPECT_TOLERANCE + 1.0 / min(page.imagewidth, page.imagelength)
    return x > 1.5 and abs(x / y - 1) <= slack


def _level(page: Any, first: Any) -> TiffLevel:
    decoder = decoder_of(page)
    assert decoder is not None
    level = TiffLevel(
        (page.imagewidth, page.imagelength),
        (page.tilewidth, page.tilelength),
        (
            _downsample(first.imagewidth, page.imagewidth),
            _downsample(first.imagelength, page.imagelength),
        ),
        np.asarray(page.dataoffsets, np.int64),
        np.asarray(page.databytecounts, np.int64),
        decoder,
    )
    if not level.columns * level.rows == len(level.offsets) == len(level.counts):
        raise SlideError(f"its TIFF index is damaged: {len(level.offsets)} tiles of {level.columns * level.rows}")
    return level


def _downsample(full_px: int, reduced_px: int) -> float:
    """Level-0 pixels per pixel: a whole number where it explains the size, since levels drop or pad a remainder."""
    ratio = full_px / reduced_px
    whole = round(ratio)
    return float(whole) if full_px // whole <= reduced_px <= -(-full_px // whole) else ratio


def ome_mpp(file: tifffile.TiffFile) -> tuple[float, float] | None:
    """Pixel size of the first image in OME-XML, in micrometres."""
    if not file.ome_metadata:
        return None
    image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    um = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
    sizes = []
    for axis in "XY":
        factor = um.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = pixels.get(f"PhysicalSize{axis}")
        if factor is None or size is None:
            return None
        sizes.append(float(size) * factor)
    return sizes[0], sizes[1]
