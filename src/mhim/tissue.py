"""Tissue on a bright-field slide: a coarse mask, and how much of any box it covers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import SlideError
from mhim.slides import Slide

DARK_LEVEL = 60
BRIGHT_LEVEL = 180


class TissueConfig(Settings):
    """How tissue is found; lengths in micrometres, so that they hold at any scale."""

    mpp: float = Field(default=8.0, gt=0, description="scale of the mask, um per cell; coarser slides use their own")
    max_side_px: int = Field(
        default=4096, ge=64, description="longest side of the mask; very large slides use coarser cells"
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=255,
        description="least colour (max - min of white-balanced RGB); by default found by Otsu",
    )
    threshold_range: tuple[float, float] = Field(
        default=(10.0, 28.0),
        description="bounds of the threshold that Otsu finds, so that neither noise nor ink moves it",
    )
    smooth_um: float = Field(default=40.0, ge=0, description="side of the median filter")
    close_um: float = Field(default=64.0, ge=0, description="gaps up to this width are closed")
    min_tissue_um2: float = Field(default=16_000.0, ge=0, description="smaller specks are dropped")
    min_hole_um2: float = Field(default=16_000.0, ge=0, description="smaller holes are filled")


@dataclass(frozen=True)
class TissueMask:
    """Where the tissue is.

    Attributes:
        cells: (rows, columns) bool, true on tissue; cell (0, 0) starts at the slide's origin.
        px0_per_cell: (x, y) side of a cell in level-0 pixels.
        um_per_cell: side of a cell in micrometres.
    """

    cells: NDArray[np.bool_]
    px0_per_cell: tuple[float, float]
    um_per_cell: float

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits that identify the mask."""
        head = f"{self.cells.shape} {self.px0_per_cell}".encode()
        return hashlib.sha256(head + np.packbits(self.cells).tobytes()).hexdigest()[:16]

    @property
    def fraction(self) -> float:
        """Share of cells that are tissue."""
        return float(self.cells.mean())

    def coverage(self, boxes_px0: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
        """Share of each box that is tissue, see :func:`coverage`."""
        return coverage(self.cells, self.px0_per_cell, boxes_px0)


def coverage(
    cells: NDArray[np.bool_], px0_per_cell: tuple[float, float], boxes_px0: NDArray[np.floating | np.integer]
) -> NDArray[np.float64]:
    """Share of each box that lies on true cells; exact for boxes that cut cells.

    Args:
        cells: (rows, columns) bool raster that starts at the slide's origin.
        px0_per_cell: (x, y) side of a cell in level-0 pixels.
        boxes_px0: (N, 4) left, top, right, bottom in level-0 pixels.

    Returns:
        (N,) float64 in [0, 1]; what lies outside the raster counts as false.

    >>> coverage(np.array([[True, False]]), (10.0, 10.0), np.array([[5, 0, 15, 10], [0, 0, 10, 20]]))
    array([0.5, 0.5])
    """
    boxes = np.asarray(boxes_px0, dtype=np.float64).reshape(-1, 4) / (*px0_per_cell, *px0_per_cell)
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top)
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1))
    np.cumsum(np.cumsum(cells, axis=0, dtype=np.float64), axis=1, out=sums[1:, 1:])
    inside = (
        _sum_to(sums, right, bottom)
        - _sum_to(sums, left, bottom)
        - _sum_to(sums, right, top)
        + _sum_to(sums, left, top)
    )
    return np.clip(np.divide(inside, area, out=np.zeros_like(area), where=area > 0), 0.0, 1.0)


def _sum_to(sums: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """True area of the rectangle from the origin to (x, y), in cells: the integral image, interpolated."""
    rows, columns = sums.shape[0] - 1, sums.shape[1] - 1
    x, y = np.clip(x, 0, columns), np.clip(y, 0, rows)
    column, row = np.minimum(x.astype(int), max(columns - 1, 0)), np.minimum(y.astype(int), max(rows - 1, 0))
    u, v = x - column, y - row
    upper = sums[row, column] * (1 - u) + sums[row, column + 1] * u
    lower = sums[row + 1, column] * (1 - u) + sums[row + 1, column + 1] * u
    return upper * (1 - v) + lower * v


def segment_tissue(slide: Slide, config: TissueConfig | None = None) -> TissueMask:
    """The tissue of a bright-field slide.

    The picture is white-balanced by its own background; colour (largest minus smallest channel) is
    thresholded by Otsu within bounds; then small specks go and small holes are filled.

    Raises:
        SlideError: the background is dark (fluorescence), or the slide cannot be read.
    """
    config = config or TissueConfig()
    um_per_cell = max(config.mpp, slide.mpp0, slide.mpp0 * max(slide.size_px0) / config.max_side_px)
    px0_per_cell = um_per_cell / slide.mpp0
    width, height = (max(1, math.ceil(side / px0_per_cell - 1e-9)) for side in slide.size_px0)
    rgb = slide.read((0, 0), (width, height), um_per_cell)
    if _is_dark(rgb):
        raise SlideError(
            f"{slide.slide_id}: dark background, looks like fluorescence; only bright-field slides can be tiled"
        )
    cells = _tissue_cells(rgb, um_per_cell, config)
    return TissueMask(cells, (px0_per_cell, px0_per_cell), um_per_cell)


def _is_dark(rgb: NDArray[np.uint8]) -> bool:
    """Mostly black and almost nothing near white: no bright-field illumination."""
    return bool((rgb.max(axis=2) < DARK_LEVEL).mean() > 0.5 and (rgb.min(axis=2) >= BRIGHT_LEVEL).mean() < 0.01)


def _tissue_cells(rgb: NDArray[np.uint8], um_per_cell: float, config: TissueConfig) -> NDArray[np.bool_]:
    import cv2

    smooth_cells = min(_odd(config.smooth_um / um_per_cell), 31)
    smooth = cv2.medianBlur(rgb, smooth_cells) if smooth_cells > 1 else rgb
    colour = colourfulness(np.asarray(smooth, dtype=np.uint8))
    threshold = config.threshold
    if threshold is None:
        otsu, _ = cv2.threshold(colour, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        threshold = float(np.clip(otsu, *config.threshold_range))
    cells = (colour > threshold).astype(np.uint8)
    side = min(_odd(config.close_um / um_per_cell), 31)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    cells = np.pad(cells, side)  # what lies outside the picture is background: gaps at its edge stay open
    cells = np.asarray(cv2.morphologyEx(cells, cv2.MORPH_CLOSE, kernel), dtype=np.uint8)
    cells = _without_small(cells, config.min_tissue_um2 / um_per_cell**2)
    cells = 1 - _without_small(1 - cells, config.min_hole_um2 / um_per_cell**2)
    return cells[side:-side, side:-side] == 1


def colourfulness(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Largest minus smallest channel, (h, w) uint8, after scaling the background (bright pixels) to white."""
    brightness = rgb.min(axis=2)
    bright = rgb[brightness >= max(np.percentile(brightness, 95), BRIGHT_LEVEL)]
    white = np.median(bright, axis=0) if len(bright) else np.full(3, 255.0)
    balanced = np.minimum(rgb * (255.0 / white), 255.0)
    return (balanced.max(axis=2) - balanced.min(axis=2)).astype(np.uint8)


def _without_small(cells: NDArray[np.uint8], min_cells: float) -> NDArray[np.uint8]:
    """Connected regions (8 neighbours) of at least ``min_cells`` cells."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(cells, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_cells
    keep[0] = False
    return np.asarray(keep[np.asarray(labels, dtype=np.intp)], dtype=np.uint8)


def _odd(length: float) -> int:
    """Nearest odd number of cells, at least 1."""
    return 2 * round((length - 1) / 2) + 1 if length > 1 else 1
