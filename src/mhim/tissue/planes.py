"""The channels of a smoothed picture, and what is asked of them: comparisons, counts, connected parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 18

Plane = NDArray[Any]  # (h, w) uint8


@dataclass(frozen=True)
class Planes:
    """Channels of a white-balanced picture, each (h, w) uint8, and what is derived from them."""

    red: Plane
    green: Plane
    blue: Plane
    brightest: Plane
    darkest: Plane
    chroma: Plane

    @classmethod
    def of(cls, channels: Iterable[Plane]) -> Planes:
        """The planes of red, green and blue, which it keeps."""
        import cv2

        red, green, blue = channels
        brightest, darkest = np.asarray(cv2.max(red, green)), np.asarray(cv2.min(red, green))
        cv2.max(brightest, blue, dst=brightest)
        cv2.min(darkest, blue, dst=darkest)
        return cls(red, green, blue, brightest, darkest, np.asarray(cv2.subtract(brightest, darkest)))

    def every(self, step: int) -> Planes:
        """Every ``step``-th cell of every ``step``-th row."""
        planes = (self.red, self.green, self.blue, self.brightest, self.darkest, self.chroma)
        return Planes(*(np.ascontiguousarray(plane[::step, ::step]) for plane in planes))

    def halved(self) -> Planes:
        """Means of two by two cells."""
        import cv2

        size = (self.red.shape[1] // 2, self.red.shape[0] // 2)
        channels = (self.red, self.green, self.blue)
        return Planes.of(np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA)) for plane in channels)


def components(region: Plane, seeds: Plane, min_cells: float, least_share: float = 0.0) -> Plane:
    """Connected parts (8 neighbours) of ``region`` that are large enough and hold enough seeds.

    Args:
        region: (h, w) uint8 of 0 and 1.
        seeds: (h, w) uint8 of 0 and 1, inside the region.
        min_cells: least number of cells of a part.
        least_share: least share of a part that is seeds.

    Returns:
        (h, w) uint8 of 0 and 1.
    """
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
    if count <= 1:
        return np.zeros_like(region)
    area = np.asarray(stats)[:, cv2.CC_STAT_AREA]
    keep = area >= min_cells
    if least_share > 0:
        keep &= np.bincount(np.asarray(labels)[seeds > 0], minlength=count) >= least_share * area
    keep[0] = False
    return keep.astype(np.uint8)[np.asarray(labels, dtype=np.intp)]


def disc(width_um: float, um_per_cell: float) -> NDArray[Any]:
    """A round structuring element, at most 31 cells wide."""
    import cv2

    side = min(odd(width_um / um_per_cell), 31)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def odd(length: float) -> int:
    """Nearest odd number of cells, at least 1."""
    return 2 * math.floor(length / 2) + 1 if length > 1 else 1


def histogram(plane: Plane, inside: Plane | None = None) -> NDArray[np.int64]:
    """(256,) how often each value occurs where ``inside`` is not 0; of large planes every other row is counted."""
    import cv2

    step = 1 + (plane.size > LARGE)
    mask = None if inside is None else inside[::step]
    return np.asarray(cv2.calcHist([plane[::step]], [0], mask, [256], [0, 256])).ravel().astype(np.int64)


def above(plane: Any, level: int) -> Plane:
    """Where a plane is greater than a level, 0 and 1."""
    return (plane > level).view(np.uint8)


def not_above(plane: Any, other: Any) -> Plane:
    """Where a plane is not greater than a level or another plane, 0 and 1."""
    return np.asarray(plane <= other).view(np.uint8)


def cells_in(plane: Plane) -> int:
    """How many cells are not 0."""
    import cv2

    return cv2.countNonZero(plane)


def denser(plane: Plane, other: Plane, times: float) -> Plane:
    """Where the optical density of a channel is at least so many times that of another."""
    import cv2

    table = (255 * (np.arange(256) / 255) ** times).astype(np.uint8)
    return not_above(plane, cv2.LUT(other, table))


def plus(plane: Plane, level: int) -> Plane:
    """A plane with a level added, at most 255."""
    import cv2

    return np.asarray(cv2.add(plane, np.full(1, level, np.uint8)))


def times(plane: Plane, factor: float) -> Plane:
    """A plane times a factor, at most 255."""
    import cv2

    return np.asarray(cv2.convertScaleAbs(plane, alpha=factor))
