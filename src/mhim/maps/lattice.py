"""Tile values as a raster that knows where it lies on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mhim.errors import FeatureError

SUBDIVISIONS = (1, 2, 3, 4, 6, 8)
EDGE_TOLERANCE = 0.1
COMMON_GAP = 0.05
MAX_CELLS = 1 << 24

Coordinates = NDArray[np.integer | np.floating]
Raster = NDArray[np.float64]


@dataclass(frozen=True)
class Lattice:
    """A raster of square cells that tiles are laid on; every tile edge lies within one cell of its true place.

    One cell is one tile where tiles stand side by side. Tiles that overlap, or that stand on several
    shifted grids, share a finer raster.

    Attributes:
        origin_px0: (x, y) of the raster's corner in level-0 pixels.
        cell_px0: side of a cell in level-0 pixels.
        shape: (rows, columns).
        boxes: (N, 4) int64, first column, first row, last column + 1, last row + 1 of each tile in cells.
        step_cells: spacing of neighbouring tiles in cells, at least 1; the tile's own width where it has no neighbour.
    """

    origin_px0: tuple[float, float]
    cell_px0: float
    shape: tuple[int, int]
    boxes: NDArray[np.int64]
    step_cells: int

    @classmethod
    def of_tiles(cls, xy_px0: Coordinates, tile_size_px0: float) -> Lattice:
        """The lattice of tiles.

        Args:
            xy_px0: (N, 2) top-left corners in level-0 pixels.
            tile_size_px0: side of a tile in level-0 pixels, need not be a whole number.
        """
        xy = np.asarray(xy_px0, dtype=np.float64)
        origin = xy.min(axis=0)
        edges = np.concatenate([xy, xy + tile_size_px0]) - origin
        step = grid_step(xy_px0) or tile_size_px0
        cell = _cell(edges, step, tile_size_px0)
        first = np.rint((xy - origin) / cell).astype(np.int64)
        last = np.maximum(np.rint((xy - origin + tile_size_px0) / cell).astype(np.int64), first + 1)
        columns, rows = last.max(axis=0)
        return cls(
            (float(origin[0]), float(origin[1])),
            float(cell),
            (int(rows), int(columns)),
            np.hstack([first, last]),
            max(1, round(step / cell)),
        )

    def raster(self, values: NDArray[np.floating]) -> Raster:
        """(rows, columns) float64: the mean over the tiles that cover a cell, NaN where none does.

        Args:
            values: (N,) one value a tile.
        """
        count = np.rint(self._sum(np.ones(len(self.boxes))))
        total = self._sum(np.asarray(values, dtype=np.float64))
        return np.divide(total, count, out=np.full(self.shape, np.nan), where=count > 0)

    def _sum(self, values: Raster) -> Raster:
        """Sum of the values of the tiles on each cell, by a summed-area table of box corners."""
        left, top, right, bottom = self.boxes.T
        width, height = self.shape[1] + 1, self.shape[0] + 1
        places = np.concatenate(
            [top * width + left, bottom * width + right, top * width + right, bottom * width + left]
        )
        signed = np.concatenate([values, values, -values, -values])
        corners = np.bincount(places, weights=signed, minlength=height * width).reshape(height, width)
        return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]

    def sample(
        self,
        raster: Raster,
        size_px: tuple[int, int],
        px0_per_px: tuple[float, float],
        corner_px0: tuple[float, float] = (0.0, 0.0),
    ) -> Raster:
        """The raster seen by a picture: the cell under every pixel's centre, NaN outside.

        Args:
            raster: (rows, columns, ...), as :meth:`raster` gives it, or its colours.
            size_px: (w, h) of the picture.
            px0_per_px: (x, y) level-0 pixels a picture pixel.
            corner_px0: (x, y) of the picture's corner in level-0 pixels.

        Returns:
            (h, w, ...) float64.
        """
        indices = []
        for axis, limit in ((1, self.shape[0]), (0, self.shape[1])):
            centre_px0 = corner_px0[axis] + (np.arange(size_px[axis]) + 0.5) * px0_per_px[axis]
            index = np.floor((centre_px0 - self.origin_px0[axis]) / self.cell_px0).astype(np.int64)
            indices.append(np.where((index >= 0) & (index < limit), index, limit))
        padded = np.pad(raster, [(0, 1), (0, 1), *[(0, 0)] * (raster.ndim - 2)], constant_values=np.nan)
        return padded[np.ix_(*indices)]


def grid_step(xy_px0: Coordinates) -> float | None:
    """Spacing of neighbouring tiles in level-0 pixels, or None when no two tiles share a row or a column.

    It is the smallest gap within rows and columns that is not rare (several grids on one slide may
    leave odd gaps), averaged with its neighbours one pixel away, since corners are whole pixels.
    """
    xy = np.asarray(xy_px0, dtype=np.float64)
    gaps = np.concatenate([_gaps(xy[:, 0], xy[:, 1]), _gaps(xy[:, 1], xy[:, 0])])
    if len(gaps) == 0:
        return None
    sizes, counts = np.unique(np.rint(gaps), return_counts=True)
    smallest = sizes[counts >= max(1.0, COMMON_GAP * counts.max())][0]
    return float(gaps[np.abs(gaps - smallest) <= 1].mean())


def tile_size_or_step(xy_px0: Coordinates, tile_size_px0: float | None, source: object) -> tuple[float, str | None]:
    """The side of a tile in level-0 pixels, and a notice when it had to be taken from the spacing.

    Raises:
        FeatureError: neither the file nor the spacing says; names ``source``.
    """
    if tile_size_px0 is not None:
        return tile_size_px0, None
    step = grid_step(xy_px0)
    if step is None:
        raise FeatureError(f"{source}: no attribute tile_size_level0, and no two tiles in one row; give it at convert")
    return step, f"tile size {step:g} px (level 0) taken from the spacing of the tiles; the bag does not say"


def _gaps(along: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positive distances between neighbours that share ``across``."""
    order = np.lexsort((along, across))
    distance = np.diff(along[order])
    return distance[(np.diff(across[order]) == 0) & (distance > 0)]


def _cell(edges_px0: NDArray[np.float64], step: float, tile_size: float) -> float:
    """The largest fraction of the step on which all tile edges fall, or the finest that is allowed."""
    step = _refined(edges_px0[: len(edges_px0) // 2], step)
    cell = step
    for parts in SUBDIVISIONS:
        cell = min(step, tile_size) / parts
        position = edges_px0 / cell
        if np.abs(position - np.rint(position)).max() <= EDGE_TOLERANCE:
            break
    extent = edges_px0.max(axis=0)
    return max(cell, float(np.sqrt(extent[0] * extent[1] / MAX_CELLS)))


def _refined(offsets_px0: NDArray[np.float64], step: float) -> float:
    """The step that fits all corners at once (least squares): corners are rounded, the step is not."""
    for _ in range(2):
        index = np.rint(offsets_px0 / step)
        squares = float((index**2).sum())
        step = float((index * offsets_px0).sum() / squares) if squares > 0 else step
    return step
