"""Outlines of tissue in level-0 pixels: an outer ring with holes, and which points lie inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outline:
    """One piece of tissue.

    Attributes:
        ring: (V, 2) int32, x and y of the outer ring in level-0 pixels; the last vertex joins the first.
        holes: rings of its holes.
    """

    ring: NDArray[np.int32]
    holes: tuple[NDArray[np.int32], ...] = ()


ContourTest = Literal["four_pt", "four_pt_hard", "center", "basic"]


@dataclass(frozen=True)
class ClamRules:
    """How CLAM's grid takes tiles from outlines.

    Attributes:
        contour_fn: which points of a tile must be inside: one of four around the centre, all four, the
            centre, or the corner.
        use_padding: whether tiles may stick out of the slide.
    """

    contour_fn: ContourTest = "four_pt"
    use_padding: bool = True


def rings(cells: NDArray[Any], *, every_pixel: bool = True) -> list[tuple[NDArray[np.int32], list[NDArray[np.int32]]]]:
    """Outer rings of a binary raster (non-zero inside), each with its holes, in cells, in OpenCV's order.

    Args:
        cells: (rows, columns) raster.
        every_pixel: keep every border pixel as a vertex, else drop those on straight runs.
    """
    import cv2

    approximation = cv2.CHAIN_APPROX_NONE if every_pixel else cv2.CHAIN_APPROX_SIMPLE
    found, tree = cv2.findContours(np.ascontiguousarray(cells, dtype=np.uint8), cv2.RETR_CCOMP, approximation)
    if tree is None:
        return []
    parents = np.asarray(tree)[0][:, 3].tolist()
    flat = [np.asarray(ring, dtype=np.int32).reshape(-1, 2) for ring in found]
    holes: dict[int, list[NDArray[np.int32]]] = {}
    for ring, parent in zip(flat, parents, strict=True):
        if parent >= 0:
            holes.setdefault(parent, []).append(ring)
    return [(ring, holes.get(index, [])) for index, ring in enumerate(flat) if parents[index] < 0]


def whole_pieces(
    cells: NDArray[Any], seeds: NDArray[Any], min_cells: float, least_share: float, min_hole_cells: float
) -> NDArray[np.uint8]:
    """Connected parts (8 neighbours) that are large enough and hold enough seeds, their small holes filled.

    Works on the borders, not on the area: a part of border length B that encloses the area A has A + B / 2 + 1
    cells with its holes, a hole A - B / 2 + 1 (Pick's theorem).

    Args:
        cells: (h, w) uint8 of 0 and 1; its outermost cells are 0.
        seeds: (h, w) uint8 of 0 and 1.
        min_cells: least number of cells of a part, holes counted in.
        least_share: least share of a part that is seeds.
        min_hole_cells: smaller holes are filled.

    Returns:
        (h, w) uint8 of 0 and 1.
    """
    import cv2

    result = cells.copy()
    found, tree = cv2.findContours(cells, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = np.asarray(tree)[0][:, 3].tolist() if tree is not None else []
    holes: dict[int, list[Any]] = {}
    for ring, parent in zip(found, parents, strict=True):
        if parent >= 0:
            holes.setdefault(parent, []).append(ring)
    filled_in: list[Any] = []
    for index, (ring, parent) in enumerate(zip(found, parents, strict=True)):
        if parent >= 0:
            continue
        own = holes.get(index, [])
        if cv2.contourArea(ring) + len(ring) / 2 + 1 < min_cells or not _holds_seeds(ring, cells, seeds, least_share):
            cv2.drawContours(result, [ring, *own], -1, 0, cv2.FILLED)
            continue
        filled_in += [hole for hole in own if cv2.contourArea(hole) - len(hole) / 2 + 1 < min_hole_cells]
    for hole in filled_in:
        cv2.drawContours(result, [hole], -1, 1, cv2.FILLED)
    return result


def _holds_seeds(ring: Any, cells: NDArray[Any], seeds: NDArray[Any], least_share: float) -> bool:
    """Whether at least a share of the cells inside a ring are seeds."""
    import cv2

    left, top, width, height = cv2.boundingRect(ring)
    place = (slice(top, top + height), slice(left, left + width))
    marked = cv2.countNonZero(seeds[place])
    if marked == 0:
        return False
    inside = np.zeros((height, width), dtype=np.uint8)
    cv2.drawContours(inside, [ring - np.array([left, top])], -1, 1, cv2.FILLED)
    inside &= cells[place]
    return cv2.countNonZero(inside & seeds[place]) >= least_share * cv2.countNonZero(inside)


def scaled(ring: NDArray[np.int32], px0_per_cell: tuple[float, float]) -> NDArray[np.int32]:
    """A ring in level-0 pixels, fractions cut off."""
    return (ring * np.asarray(px0_per_cell)).astype(np.int32)


def outlines_of(cells: NDArray[np.bool_], px0_per_cell: tuple[float, float]) -> tuple[Outline, ...]:
    """Outlines of the true cells in level-0 pixels, through the cells at the border, as CLAM takes them."""
    return tuple(
        Outline(scaled(ring, px0_per_cell), tuple(scaled(hole, px0_per_cell) for hole in holes))
        for ring, holes in rings(cells)
    )


def place_in_ring(ring: NDArray[np.int32], points: NDArray[np.floating | np.integer]) -> NDArray[np.int8]:
    """Where points lie: 1 inside, 0 on the ring, -1 outside; even-odd rule, exact for whole numbers below 2**20.

    Every edge is crossed with the horizontal lines of the points at once, so there is no loop over
    points: cost grows with (points + crossings) x log.

    Args:
        ring: (V, 2) int32 closed polygon.
        points: (N, 2) x and y.

    Returns:
        (N,) int8, equal to the sign of OpenCV's ``pointPolygonTest``.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    lines, line_of = np.unique(points[:, 1], return_inverse=True)
    start, end = ring.astype(np.float64), np.roll(ring, -1, axis=0).astype(np.float64)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.searchsorted(lines, low, "left")
    counts = np.where(low < high, np.searchsorted(lines, high, "left") - first, 0)  # lines with low <= y < high
    edge = np.repeat(np.arange(len(ring)), counts)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    rise = end[edge, 1] - start[edge, 1]
    x = start[edge, 0] + (lines[line] - start[edge, 1]) * (end[edge, 0] - start[edge, 0]) / rise
    width = float(max(np.abs(ring[:, 0]).max(initial=0), np.abs(points[:, 0]).max(initial=0))) * 2 + 2
    keys = np.sort(line * width + x)
    wanted = line_of * width + points[:, 0]
    right_of = np.searchsorted(keys, wanted, "right")
    line_end = np.searchsorted(keys, (line_of + 0.5) * width, "left")
    place = np.where((line_end - right_of) % 2 == 1, 1, -1).astype(np.int8)
    place[_on_ring(keys, wanted, right_of)] = 0
    place[_on_level_edges(start, end, points)] = 0
    return place


def _on_ring(keys: NDArray[np.float64], wanted: NDArray[np.float64], right_of: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Points that lie on a crossing of their line with an edge."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=bool)
    return (right_of > 0) & (keys[np.maximum(right_of - 1, 0)] == wanted)


def _on_level_edges(
    start: NDArray[np.float64], end: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Points on a horizontal edge or on a vertex, which the half-open crossing rule passes over."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    level = low[:, 1] == high[:, 1]
    spans = np.concatenate([np.stack([low[level, 1], low[level, 0], high[level, 0]], 1), start[:, [1, 0, 0]]])
    spans = spans[np.isin(spans[:, 0], points[:, 1])]
    if not len(spans):
        return np.zeros(len(points), dtype=bool)
    width = float(np.abs(spans[:, 1:]).max()) * 2 + float(np.abs(points[:, 0]).max()) * 2 + 2
    lines, line_of = np.unique(spans[:, 0], return_inverse=True)
    left, right = line_of * width + spans[:, 1], line_of * width + spans[:, 2]
    order = np.argsort(left, kind="stable")
    left, reach = left[order], np.maximum.accumulate(right[order])
    row = np.minimum(np.searchsorted(lines, points[:, 1]), len(lines) - 1)
    at = row * width + points[:, 0]
    before = np.searchsorted(left, at, "right") - 1
    return (lines[row] == points[:, 1]) & (before >= 0) & (reach[np.maximum(before, 0)] >= at)


def filled(outlines: Sequence[Outline], shape: tuple[int, int], px0_per_cell: tuple[float, float]) -> NDArray[np.bool_]:
    """Raster of outlines: cells inside a ring and not inside one of its holes."""
    import cv2

    cells = np.zeros(shape, dtype=np.uint8)
    for outline in outlines:
        ring = _cell_ring(outline.ring, px0_per_cell)
        left, top = np.clip(ring.min(axis=0), 0, (shape[1] - 1, shape[0] - 1)).tolist()
        right, bottom = np.clip(ring.max(axis=0) + 1, 1, (shape[1], shape[0])).tolist()
        piece = np.zeros((bottom - top, right - left), dtype=np.uint8)
        corner = np.array([left, top], dtype=np.int32)
        cv2.fillPoly(piece, [ring - corner], 1)
        for hole in outline.holes:
            inner = _cell_ring(hole, px0_per_cell) - corner
            cv2.fillPoly(piece, [inner], 0)
            cv2.polylines(piece, [inner], True, 1)
        cells[top:bottom, left:right] |= piece
    return cells.astype(bool)


def _cell_ring(ring: NDArray[np.int32], px0_per_cell: tuple[float, float]) -> NDArray[np.int32]:
    """A ring in cells: the cells that hold its vertices."""
    return np.floor((ring + 0.5) / np.asarray(px0_per_cell)).astype(np.int32)
