"""Pictures of what was tiled: thumbnail, outline of the tissue, what was left out, and the tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mhim.artefacts as artefacts
from mhim.tile_io import jpeg_bytes
from mhim.tiles import TileGrid, tile_boxes

TISSUE_COLOUR = (0, 160, 0)
TILE_COLOUR = (40, 90, 200)
REJECTED_COLOUR = (255, 120, 0)


def write_preview(path: Path, grid: TileGrid) -> None:
    """Write the picture of :func:`draw_preview` as JPEG; nothing for a grid without a thumbnail."""
    picture = draw_preview(grid)
    if picture is None:
        return
    with artefacts.atomic_path(path) as temporary:
        temporary.write_bytes(jpeg_bytes(picture))


def draw_preview(grid: TileGrid) -> NDArray[np.uint8] | None:
    """The thumbnail with the outline of the tissue, the tiles, and ink or blur tinted orange; (h, w, 3) uint8.

    None for a grid without a thumbnail.
    """
    import cv2

    if grid.thumbnail is None:
        return None
    picture = grid.thumbnail.copy()
    height, width = picture.shape[:2]
    scale = width / grid.attributes["level0_width"]
    if grid.tissue.rejected is not None:
        rejected = _at_scale(grid.tissue.rejected, grid.tissue.px0_per_cell, scale, (width, height)) > 0
        picture[rejected] = (picture[rejected] * 0.5 + np.array(REJECTED_COLOUR) * 0.5).astype(np.uint8)
    boxes = np.rint(tile_boxes(grid.xy_px0, grid.attributes["tile_size_level0"]) * scale).astype(np.int32)
    squares = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    cv2.polylines(picture, list(squares), True, TILE_COLOUR, 1)
    cells = _at_scale(grid.tissue.cells, grid.tissue.px0_per_cell, scale, (width, height))
    outlines = cv2.findContours(cells, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    cv2.drawContours(picture, outlines, -1, TISSUE_COLOUR, 2)
    return picture


def _at_scale(
    cells: NDArray[np.bool_], px0_per_cell: tuple[float, float], scale: float, size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Cells as an image of ``size_px`` (w, h), ``scale`` pixels per level-0 pixel."""
    import cv2

    x, y = (side * scale for side in px0_per_cell)
    stretch = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], dtype=np.float64)
    return np.asarray(cv2.warpAffine(cells.astype(np.uint8), stretch, size_px, flags=cv2.INTER_NEAREST), dtype=np.uint8)
