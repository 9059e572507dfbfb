"""Pen ink and other dark or foreign marks on a bright-field slide.

Haematoxylin, eosin and the brown of DAB all absorb green more than red: stained tissue has R > G. Blue,
green, teal and cyan inks have not. Red and orange inks are recognised by blue that is as dark as green,
violet and crimson inks by being denser and more even than stains of their hue, black ink and cover-slip
edges by being dark without colour. On slides whose own stain is blue or green (Giemsa, trichrome, a bare
counterstain) the cool colours are the tissue; texture and share decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURED = 12
MIN_INK_UM2 = 20_000.0
MIN_MARK_UM2 = 50_000.0
DARK_WIDTH_UM = 100.0
MARGIN_UM = 32.0
FINE_UM, FINE_CELLS = 8.0, 512
SEEN_UM = 48.0
"""Colours of ink are looked for at places this far apart; where none is found, no ink is that wide."""
WHOLE_SLIDE_UM = 10_000.0
"""Lengths below hold for pictures of at least this side; on smaller ones, marks may be smaller too."""
LARGE = 1 << 18
BLUER = 30
STAIN_SHARE, SURE_STAIN_SHARE = 0.5, 0.92
STAIN_ROUGHNESS, SURE_STAIN_ROUGHNESS = 0.14, 0.10

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


def find_ink(planes: Planes, um_per_cell: float) -> Plane:
    """Cells to leave out, (h, w) uint8 of 0 and 1: pen ink of any colour but pale violet, and broad dark marks.

    Args:
        planes: a smoothed, white-balanced picture.
        um_per_cell: side of a cell.
    """
    import cv2

    size = min(1.0, max(max(planes.chroma.shape) * um_per_cell / WHOLE_SLIDE_UM, 0.25))
    seen = _colours_seen(planes, um_per_cell / size)
    if not any(seen):
        return np.zeros_like(planes.chroma)
    if um_per_cell <= FINE_UM and min(planes.chroma.shape) >= FINE_CELLS:  # strokes are wide
        found = _marks(planes.halved(), 2 * um_per_cell, size, seen)
        return np.asarray(cv2.resize(found, planes.chroma.shape[::-1], interpolation=cv2.INTER_NEAREST))
    return _marks(planes, um_per_cell, size, seen)


def _colours_seen(planes: Planes, um_per_cell: float) -> list[bool]:
    """Which kinds of ink may be there: looked for at places ``SEEN_UM`` apart, a quarter of the least area."""
    step = max(1, int(SEEN_UM / um_per_cell))
    few = planes.every(step)
    place_um2 = (step * um_per_cell) ** 2
    return [_count(colours(few)) * place_um2 > least_um2 / 4 for colours, least_um2 in KINDS]


def _marks(planes: Planes, um_per_cell: float, size: float, seen: list[bool]) -> Plane:
    """Marks of the kinds that were seen; they may be smaller by ``size``, the picture's size to that of a slide."""
    import cv2

    cell_um2 = (um_per_cell / size) ** 2
    coloured = _above(planes.chroma, COLOURED)
    marks = np.zeros_like(coloured)
    if seen[0]:
        marks = _cool_ink(planes, coloured, cell_um2)
        marks |= _over_tissue(planes, coloured, marks)
    if seen[1]:
        marks |= _violet_ink(planes, coloured, cell_um2)
    if seen[2]:
        marks |= _warm_ink(planes, coloured & ~marks & 1, cell_um2)
    if seen[3]:
        marks |= _crimson_ink(planes, coloured, cell_um2)
    if seen[4]:
        marks |= _dark_marks(planes, um_per_cell / size)
    if marks.any():
        marks = np.asarray(cv2.dilate(marks, disc(2 * max(MARGIN_UM * size, um_per_cell), um_per_cell)))
    return marks | _faint_ink(planes, coloured, marks) if seen[0] else marks


def _cool(planes: Planes) -> Plane:
    """The colours of blue, green and teal ink."""
    return _above(planes.chroma, COLOURED) & _not_above(planes.red, _plus(planes.green, 2))


def _violet(planes: Planes) -> Plane:
    """The colours of dense violet ink."""
    return _above(planes.chroma, 84) & _not_above(planes.green, 70)


def _warm(planes: Planes) -> Plane:
    """The colours of dense red and orange ink."""
    import cv2

    excess, blue_excess = cv2.subtract(planes.red, planes.green), cv2.subtract(planes.blue, planes.green)
    dense = _not_above(planes.green, 150) & _above(planes.red, 85)
    return _above(excess, 80) & _not_above(blue_excess, 24) & dense


def _crimson(planes: Planes) -> Plane:
    """The colours of dense crimson and rose ink."""
    import cv2

    excess = cv2.subtract(planes.red, planes.green)
    red = _above(excess, 80) & _not_above(planes.blue, planes.red)
    return red & (_not_above(planes.green, 46) | _above(excess, 155))


def _dark(planes: Planes) -> Plane:
    """Dark without colour, or dark and bluish."""
    dark = _not_above(planes.brightest, 100) & _not_above(planes.chroma, 40)
    return dark | (_not_above(planes.brightest, 90) & _not_above(planes.red, planes.blue))


KINDS = (
    (_cool, MIN_INK_UM2),
    (_violet, 0.3 * MIN_MARK_UM2),
    (_warm, 0.3 * MIN_MARK_UM2),
    (_crimson, MIN_MARK_UM2),
    (_dark, MIN_MARK_UM2),
)
"""Kinds of ink: their colours, and the least area of these."""


def _cool_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Blue, green and teal strokes, unless these are the colours of the stain."""
    import cv2

    none = np.zeros_like(coloured)
    cool = _cool(planes)
    if _count(cool) * cell_um2 < MIN_INK_UM2:
        return none
    vivid = _above(planes.chroma, 74)
    deep = _above(planes.chroma, 40) & _not_above(_times(planes.brightest, 0.55), planes.chroma)
    over_red, over_blue = cv2.subtract(planes.green, planes.red), cv2.subtract(planes.green, planes.blue)
    leafy = _above(planes.chroma, 30) & _above(over_red, 19) & _above(over_blue, 9)
    pen = components(cool, cool & (vivid | deep | leafy), MIN_INK_UM2 / cell_um2, least_share=0.1)
    pen_cells, other_cells = _count(pen), _count(coloured) - _count(cool)
    share = pen_cells / max(1, pen_cells + other_cells)
    if share > STAIN_SHARE:
        roughness = _roughness(planes.darkest, pen)
        if roughness > (SURE_STAIN_ROUGHNESS if share > SURE_STAIN_SHARE else STAIN_ROUGHNESS):
            return none
    return pen


def _over_tissue(planes: Planes, coloured: Plane, pen: Plane) -> Plane:
    """Where strokes of cool ink go on over tissue: cells that hang on to them and are far bluer than the tissue is."""
    import cv2

    if not pen.any():
        return np.zeros_like(pen)
    cold = cv2.subtract(planes.blue, planes.red)
    tissue: Plane = coloured & ~pen & 1
    below = np.cumsum(histogram(np.asarray(cold), tissue))
    usual = int(np.searchsorted(below, below[-1] / 2))
    bluer = tissue & _above(cold, usual + BLUER)
    near = np.asarray(cv2.dilate(pen, np.ones((5, 5), np.uint8)), dtype=np.uint8)
    return components(bluer | pen, near & (bluer | pen), 0, least_share=0.1) & bluer


def _violet_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Violet strokes: the hue of haematoxylin, but more vivid where it is dense than stain is, and even."""
    import cv2

    none = np.zeros_like(coloured)
    vivid = _violet(planes)
    if _count(vivid) * cell_um2 < 0.3 * MIN_MARK_UM2:
        return none
    violet = _not_above(_plus(planes.green, 4), planes.red) & _not_above(_plus(planes.red, 4), planes.blue)
    weak: Plane = violet & _above(planes.chroma, 50) & _not_above(planes.green, 76)
    sure = weak & (vivid | (_above(planes.chroma, 60) & _not_above(planes.green, 36)))
    weak = np.asarray(cv2.morphologyEx(np.asarray(weak, np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    pen = components(weak, sure & weak, MIN_MARK_UM2 / cell_um2, least_share=0.5)
    if _count(pen) > STAIN_SHARE * _count(coloured) or _roughness(planes.green, pen) > STAIN_ROUGHNESS:
        return none
    return pen


def _faint_ink(planes: Planes, coloured: Plane, marks: Plane) -> Plane:
    """Weak blue and green on a slide whose tissue clearly is neither."""
    cold = coloured & _not_above(_plus(planes.red, 6), planes.green) & ~marks & 1
    tissue = _count(coloured & ~marks & 1)
    return cold if _count(cold) < 0.1 * tissue else np.zeros_like(cold)


def _warm_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Red and orange strokes: blue as dark as green, where eosin leaves blue brighter."""
    import cv2

    sure = _warm(planes)
    if _count(sure) * cell_um2 < 0.3 * MIN_MARK_UM2:
        return np.zeros_like(coloured)
    excess, blue_excess = cv2.subtract(planes.red, planes.green), cv2.subtract(planes.blue, planes.green)
    weak = sure | (coloured & _above(excess, 12) & _not_above(blue_excess, 8))
    pen = components(weak, sure, MIN_MARK_UM2 / cell_um2, least_share=0.3)
    if _count(pen) > 0.6 * _count(coloured) and _roughness(planes.darkest, pen) > SURE_STAIN_ROUGHNESS:
        return np.zeros_like(coloured)
    return _blood_left_out(pen, np.asarray(excess), planes.green, coloured)


def _crimson_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Crimson and rose strokes: the hue of eosin, but denser and more vivid than stain is, and even."""
    import cv2

    none = np.zeros_like(coloured)
    sure = _crimson(planes)
    if _count(sure) * cell_um2 < MIN_MARK_UM2:
        return none
    excess = cv2.subtract(planes.red, planes.green)
    red = _above(excess, 80) & _not_above(planes.blue, planes.red)
    weak: Plane = sure | (red & (_not_above(planes.green, 76) | _above(excess, 140)))
    weak = np.asarray(cv2.morphologyEx(np.asarray(weak, np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    pen = components(weak, sure & weak, 4 * MIN_MARK_UM2 / cell_um2, least_share=0.6)
    if _count(pen) > STAIN_SHARE * _count(coloured) or _roughness(planes.green, pen) > STAIN_ROUGHNESS:
        return none
    return _blood_left_out(pen, np.asarray(excess), planes.green, coloured)


def _blood_left_out(pen: Plane, excess: Plane, green: Plane, coloured: Plane) -> Plane:
    """Red regions that touch glass, or are redder or denser than blood: blood inside tissue stays tissue."""
    import cv2

    count, labels = cv2.connectedComponents(pen, connectivity=8)
    if count <= 1:
        return pen
    labels = np.asarray(labels, dtype=np.intp)
    grown = np.asarray(cv2.dilate(labels.astype(np.float32), np.ones((7, 7), np.uint8))).astype(np.intp)
    ring = (labels == 0) & (grown > 0)
    border = np.bincount(grown[ring], minlength=count)
    glass = np.bincount(grown[ring & (coloured == 0)], minlength=count)
    redness = np.bincount(labels.ravel(), excess.ravel(), minlength=count)
    area = np.bincount(labels.ravel(), minlength=count)
    greenness = np.bincount(labels.ravel(), green.ravel(), minlength=count)
    keep = (glass >= 0.1 * border) | (redness >= 125 * area) | (greenness <= 35 * area)
    keep[0] = False
    return keep[labels].astype(np.uint8)


def _dark_marks(planes: Planes, um_per_cell: float) -> Plane:
    """Broad regions that are dark and colourless: black ink, cover-slip edges, black borders."""
    import cv2

    dark = _dark(planes)
    if _count(dark) * um_per_cell**2 < MIN_MARK_UM2:
        return np.zeros_like(dark)
    dark = np.asarray(dark, dtype=np.uint8)
    broad = np.asarray(cv2.morphologyEx(dark, cv2.MORPH_OPEN, disc(DARK_WIDTH_UM, um_per_cell)))
    broad = np.asarray(cv2.dilate(broad, disc(DARK_WIDTH_UM, um_per_cell)), dtype=np.uint8) & dark
    return components(broad, broad, MIN_MARK_UM2 / um_per_cell**2)


def _roughness(darkest: Plane, inside: Plane) -> float:
    """Median over a region's core of the local deviation of optical density over its mean; ink is even."""
    import cv2

    core = np.asarray(cv2.erode(inside, np.ones((5, 5), np.uint8))) > 0
    if np.count_nonzero(core) < 50:
        return 0.0
    density = (-np.log((np.arange(256, dtype=np.float32) + 1) / 256))[darkest]
    mean = np.asarray(cv2.blur(density, (5, 5)))
    square = np.asarray(cv2.blur(density * density, (5, 5)))
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    return float(np.median(deviation[core] / np.maximum(mean[core], 1e-3)))


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


def _above(plane: Any, level: int) -> Plane:
    return (plane > level).view(np.uint8)


def _not_above(plane: Any, other: Any) -> Plane:
    return np.asarray(plane <= other).view(np.uint8)


def _count(plane: Plane) -> int:
    import cv2

    return cv2.countNonZero(plane)


def _plus(plane: Plane, level: int) -> Plane:
    import cv2

    return np.asarray(cv2.add(plane, np.full(1, level, np.uint8)))


def _times(plane: Plane, factor: float) -> Plane:
    import cv2

    return np.asarray(cv2.convertScaleAbs(plane, alpha=factor))
