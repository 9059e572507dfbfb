"""A raster of tissue cells, and how much of any box it covers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.slides import Slide
from mhim.tissue.regions import ClamRules, Outline, outlines_of


@dataclass(frozen=True)
class TissueMask:
    """Where the tissue is.

    Attributes:
        cells: (rows, columns) bool, true on tissue; cell (0, 0) starts at the slide's origin.
        px0_per_cell: (x, y) side of a cell in level-0 pixels.
        um_per_cell: side of a cell in micrometres.
        method: what found it: "stain", "clam:<preset>", "file:<name>".
        rejected: (rows, columns) bool, cells left out as pen ink or blur, or None.
        outlines: outlines in level-0 pixels where the method itself works with them (CLAM), or None.
        clam_rules: how CLAM's grid takes tiles from the outlines.
    """

    cells: NDArray[np.bool_]
    px0_per_cell: tuple[float, float]
    um_per_cell: float
    method: str = "stain"
    rejected: NDArray[np.bool_] | None = None
    outlines: tuple[Outline, ...] | None = None
    clam_rules: ClamRules = ClamRules()

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

    def outlines_px0(self) -> tuple[Outline, ...]:
        """Outlines of the tissue with their holes, in level-0 pixels: the method's own, else those of the cells."""
        return self.outlines if self.outlines is not None else outlines_of(self.cells, self.px0_per_cell)


def stored_downsamples(slide: Slide) -> tuple[float, ...]:
    """Level-0 pixels per pixel of each stored level, finest first; (1,) for a slide without a pyramid."""
    levels = getattr(slide, "levels", ())
    return tuple(getattr(slide, "downsamples", ()) or (sum(level.downsample) / 2 for level in levels)) or (1.0,)


def raster_size(slide: Slide, um_per_cell: float) -> tuple[int, int]:
    """(columns, rows) of square cells of ``um_per_cell`` that cover a slide."""
    px0_per_cell = um_per_cell / slide.mpp0
    width, height = (max(1, math.ceil(side / px0_per_cell - 1e-9)) for side in slide.size_px0)
    return width, height


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
    sums = integral(cells)
    inside = (
        _sum_to(sums, right, bottom)
        - _sum_to(sums, left, bottom)
        - _sum_to(sums, right, top)
        + _sum_to(sums, left, top)
    )
    return np.clip(np.divide(inside, area, out=np.zeros_like(area), where=area > 0), 0.0, 1.0)


def lattice_coverage(
    cells: NDArray[np.bool_],
    px0_per_cell: tuple[float, float],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    side_px0: float,
) -> NDArray[np.float64]:
    """As :func:`coverage`, for every square with its corner on the lattice of ``x`` and ``y``.

    The integral image is interpolated once per row and once per column, not once per square, which is
    several times cheaper.

    Returns:
        (len(y), len(x)) float64 in [0, 1].
    """
    rows = _lerp(integral(cells), _bounds(y, side_px0, px0_per_cell[1], cells.shape[0]))
    columns = _lerp(rows.T, _bounds(x, side_px0, px0_per_cell[0], cells.shape[1])).T
    top, bottom = columns[: len(y)], columns[len(y) :]
    inside = bottom[:, len(x) :] - bottom[:, : len(x)] - top[:, len(x) :] + top[:, : len(x)]
    shares = inside * (px0_per_cell[0] * px0_per_cell[1] / side_px0**2)
    return np.clip(shares, 0.0, 1.0, dtype=np.float64)


def integral(cells: NDArray[np.bool_]) -> NDArray[Any]:
    """(rows + 1, columns + 1) int32: number of true cells above and left of each corner."""
    import cv2

    return np.asarray(cv2.integral(cells.view(np.uint8)))


def _bounds(corners: NDArray[np.int64], side: float, per_cell: float, cells: int) -> NDArray[np.float64]:
    """First the near, then the far bounds of squares along one axis, in cells."""
    bounds = np.concatenate([corners, corners + side]) / per_cell
    return np.asarray(bounds.clip(0, cells), dtype=np.float64)


def _lerp(values: NDArray[Any], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of ``values`` at fractional places."""
    index = np.minimum(at.astype(np.intp), len(values) - 2)
    share = (at - index)[:, None]
    between: NDArray[np.float64] = values[index] * (1 - share) + values[index + 1] * share
    return between


def _sum_to(sums: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """True area of the rectangle from the origin to (x, y), in cells: the integral image, interpolated."""
    rows, columns = sums.shape[0] - 1, sums.shape[1] - 1
    x, y = np.clip(x, 0, columns), np.clip(y, 0, rows)
    column, row = np.minimum(x.astype(int), max(columns - 1, 0)), np.minimum(y.astype(int), max(rows - 1, 0))
    u, v = x - column, y - row
    upper = sums[row, column] * (1 - u) + sums[row, column + 1] * u
    lower = sums[row + 1, column] * (1 - u) + sums[row + 1, column + 1] * u
    return upper * (1 - v) + lower * v
