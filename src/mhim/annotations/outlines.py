"""Outlines in level-0 pixels, and the share of boxes that they cover, by exact intervals on scan lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
LINES_PER_BOX = 16


@dataclass(frozen=True)
class Region:
    """One area: its rings are combined by the even-odd rule, so a ring inside another one is a hole.

    Attributes:
        rings: each (K, 2) float64 corners x, y in level-0 pixels; the last is joined to the first.
        name: what its author called it, a class or a group; may be empty.
        is_excluded: whether it is cut out of all others.
    """

    rings: tuple[Points, ...]
    name: str = ""
    is_excluded: bool = False


@dataclass(frozen=True)
class Outlines:
    """The areas of one slide: inside is what some region covers and no excluded one does."""

    regions: tuple[Region, ...]

    def __len__(self) -> int:
        return len(self.regions)

    def fractions(self, boxes_px0: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) share of each box that is inside.

        Exact along x, on 16 lines a box along y.

        Args:
            boxes_px0: (N, 4) left, top, right, bottom in level-0 pixels.
        """
        total = np.zeros(len(boxes_px0))
        if not len(boxes_px0) or not self.regions:
            return total
        edges = _Edges.of(self.regions)
        tops, bottoms = boxes_px0[:, 1], boxes_px0[:, 3]
        rows, row_of = np.unique(np.stack([tops, bottoms], axis=1), axis=0, return_inverse=True)
        members_of = np.split(np.argsort(row_of.ravel(), kind="stable"), np.bincount(row_of.ravel()).cumsum()[:-1])
        for (top, bottom), members in zip(rows, members_of, strict=True):
            nearby = edges.between(top, bottom)
            if nearby is None:
                continue
            left, right = boxes_px0[members, 0], boxes_px0[members, 2]
            for line in range(LINES_PER_BOX):
                y = top + (line + 0.5) / LINES_PER_BOX * (bottom - top)
                x, length = nearby.covered_left_of(y)
                total[members] += (np.interp(right, x, length) - np.interp(left, x, length)) / (right - left)
        return total / LINES_PER_BOX


@dataclass(frozen=True)
class _Edges:
    """All edges of some regions, except level ones: end points, and the region that each belongs to."""

    start: Points
    end: Points
    region: NDArray[np.int64]
    is_excluded: NDArray[np.bool_]

    @classmethod
    def of(cls, regions: tuple[Region, ...]) -> _Edges:
        starts, ends, owners = [], [], []
        for number, region in enumerate(regions):
            for ring in region.rings:
                following = np.roll(ring, -1, axis=0)
                sloped = ring[:, 1] != following[:, 1]
                starts.append(ring[sloped])
                ends.append(following[sloped])
                owners.append(np.full(int(sloped.sum()), number))
        excluded = np.array([region.is_excluded for region in regions])
        return cls(np.concatenate(starts), np.concatenate(ends), np.concatenate(owners), excluded)

    def between(self, top: float, bottom: float) -> _Edges | None:
        """The edges that meet a band, None without any."""
        low = np.minimum(self.start[:, 1], self.end[:, 1])
        high = np.maximum(self.start[:, 1], self.end[:, 1])
        near = (low <= bottom) & (high >= top)
        return _Edges(self.start[near], self.end[near], self.region[near], self.is_excluded) if near.any() else None

    def covered_left_of(self, y: float) -> tuple[Points, Points]:
        """(x, length covered left of x) along a level line: what is linear in between."""
        y0, y1 = self.start[:, 1], self.end[:, 1]
        crossing = (y0 <= y) != (y1 <= y)
        if not crossing.any():
            return np.zeros(1), np.zeros(1)
        share = (y - y0[crossing]) / (y1 - y0)[crossing]
        x = self.start[crossing, 0] + share * (self.end - self.start)[crossing, 0]
        owner = self.region[crossing]
        by_region = np.lexsort((x, owner))  # a region's crossings in turn enter and leave it
        x, owner = x[by_region], owner[by_region]
        first = np.searchsorted(owner, owner)
        step = np.where((np.arange(len(x)) - first) % 2 == 0, 1, -1)
        order = np.argsort(x, kind="stable")
        x, step, excluded = x[order], step[order], self.is_excluded[owner[order]]
        inside = ((step * ~excluded).cumsum() > 0) & ((step * excluded).cumsum() == 0)
        return x, np.append(0.0, (np.diff(x) * inside[:-1]).cumsum())
