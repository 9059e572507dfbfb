"""Pen ink and other dark or foreign marks on a bright-field slide.

Haematoxylin, eosin and the brown of DAB all absorb green more than red: stained tissue has R > G. Blue,
green, teal and cyan inks have not. Red and orange inks are recognised by blue that is as dark as green;
yellow and brown inks by blue that is darker, where eosin shows that brown is no stain of the slide;
violet inks by a gap between their density and that of all stain, crimson inks by being denser and more
even than stains of their hue, black ink and cover-slip edges by being dark without colour. On slides whose
own stain is blue or green (Giemsa, trichrome, a bare counterstain) the cool colours are the tissue; texture
and share decide.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mhim.tissue.planes import (
    Plane,
    Planes,
    above,
    cells_in,
    components,
    denser,
    disc,
    histogram,
    not_above,
    plus,
    times,
)

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
BLUER = 30
STAIN_SHARE, SURE_STAIN_SHARE = 0.5, 0.92
GAP_LEVELS, GAP_DEPTH, GAP_REACH = (44, 84), 0.4, 80
EOSIN_SHARE = 0.25
STAIN_ROUGHNESS, SURE_STAIN_ROUGHNESS = 0.14, 0.10


def find_ink(planes: Planes, um_per_cell: float) -> Plane | None:
    """Cells to leave out, (h, w) uint8 of 0 and 1: pen ink of any colour but pale violet, and broad dark marks.

    None where no colour of ink is seen at all.

    Args:
        planes: a smoothed, white-balanced picture.
        um_per_cell: side of a cell.
    """
    import cv2

    size = min(1.0, max(max(planes.chroma.shape) * um_per_cell / WHOLE_SLIDE_UM, 0.25))
    seen = _colours_seen(planes, um_per_cell / size)
    if not any(seen):
        return None
    if um_per_cell <= FINE_UM and min(planes.chroma.shape) >= FINE_CELLS:  # strokes are wide
        found = _marks(planes.halved(), 2 * um_per_cell, size, seen)
        return np.asarray(cv2.resize(found, planes.chroma.shape[::-1], interpolation=cv2.INTER_NEAREST))
    return _marks(planes, um_per_cell, size, seen)


def _colours_seen(planes: Planes, um_per_cell: float) -> list[bool]:
    """Which kinds of ink may be there: looked for at places ``SEEN_UM`` apart, a quarter of the least area."""
    step = max(1, int(SEEN_UM / um_per_cell))
    few = planes.every(step)
    place_um2 = (step * um_per_cell) ** 2
    return [cells_in(colours(few)) * place_um2 > least_um2 / 4 for colours, least_um2 in KINDS]


def _marks(planes: Planes, um_per_cell: float, size: float, seen: list[bool]) -> Plane:
    """Marks of the kinds that were seen; they may be smaller by ``size``, the picture's size to that of a slide."""
    import cv2

    cell_um2 = (um_per_cell / size) ** 2
    coloured = above(planes.chroma, COLOURED)
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
        marks |= _dark_marks(planes, coloured, um_per_cell, size)
    if seen[5]:
        marks |= _amber_ink(planes, coloured, cell_um2)
    if marks.any():
        marks = np.asarray(cv2.dilate(marks, disc(2 * max(MARGIN_UM * size, um_per_cell), um_per_cell)))
    return marks | _faint_ink(planes, coloured, marks) if seen[0] else marks


def _cool(planes: Planes) -> Plane:
    """The colours of blue, green and teal ink."""
    return above(planes.chroma, COLOURED) & not_above(planes.red, plus(planes.green, 2))


def _violet(planes: Planes) -> Plane:
    """The colours of dense violet and purple ink, and of very dense stain."""
    return above(planes.chroma, 50) & not_above(planes.green, GAP_LEVELS[0]) & not_above(planes.red, planes.blue)


def _amber(planes: Planes) -> Plane:
    """The colours of yellow, ochre and brown ink, and of DAB."""
    return above(planes.chroma, COLOURED) & not_above(plus(planes.blue, 6), planes.green)


def _warm(planes: Planes) -> Plane:
    """The colours of dense red and orange ink."""
    import cv2

    excess, blue_excess = cv2.subtract(planes.red, planes.green), cv2.subtract(planes.blue, planes.green)
    dense = not_above(planes.green, 150) & above(planes.red, 85)
    vivid = above(excess, 125) & not_above(blue_excess, 40)
    return dense & (vivid | (above(excess, 80) & not_above(blue_excess, 24)))


def _crimson(planes: Planes) -> Plane:
    """The colours of dense crimson and rose ink."""
    import cv2

    excess = cv2.subtract(planes.red, planes.green)
    red = above(excess, 80) & not_above(planes.blue, planes.red)
    return red & (not_above(planes.green, 46) | above(excess, 155))


def _dark(planes: Planes) -> Plane:
    """Dark without colour, or dark and bluish."""
    dark = not_above(planes.brightest, 100) & not_above(planes.chroma, 40)
    return dark | (not_above(planes.brightest, 90) & not_above(planes.red, planes.blue))


def _deep(planes: Planes) -> Plane:
    """Dark and not brown, of any hue of H&E, or grey: black ink over tissue that shows through, and thin on glass."""
    deep = not_above(planes.brightest, 105) & not_above(plus(planes.green, 6), planes.blue)
    return deep | (not_above(planes.brightest, 135) & not_above(planes.chroma, 20))


def _dark_or_deep(planes: Planes) -> Plane:
    """The colours of black ink."""
    return _dark(planes) | _deep(planes)


KINDS = (
    (_cool, MIN_INK_UM2),
    (_violet, MIN_MARK_UM2),
    (_warm, 0.3 * MIN_MARK_UM2),
    (_crimson, MIN_MARK_UM2),
    (_dark_or_deep, MIN_MARK_UM2),
    (_amber, MIN_MARK_UM2),
)
"""Kinds of ink: their colours, and the least area of these."""


def _cool_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Blue, green and teal strokes, unless these are the colours of the stain."""
    import cv2

    none = np.zeros_like(coloured)
    cool = _cool(planes)
    if cells_in(cool) * cell_um2 < MIN_INK_UM2:
        return none
    vivid = above(planes.chroma, 74)
    deep = above(planes.chroma, 40) & not_above(times(planes.brightest, 0.55), planes.chroma)
    over_red, over_blue = cv2.subtract(planes.green, planes.red), cv2.subtract(planes.green, planes.blue)
    leafy = above(planes.chroma, 30) & above(over_red, 19) & above(over_blue, 9)
    sure = vivid | deep | leafy
    has_eosin = _has_eosin(planes, coloured)
    if has_eosin:  # then no stain is blue
        sure |= above(planes.chroma, 44) & not_above(plus(planes.red, 8), planes.green)
    pen = components(cool, cool & sure, MIN_INK_UM2 / cell_um2, least_share=0.1)
    pen_cells, other_cells = cells_in(pen), cells_in(coloured) - cells_in(cool)
    share = pen_cells / max(1, pen_cells + other_cells)
    if share > STAIN_SHARE and not (has_eosin and share <= SURE_STAIN_SHARE):
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
    bluer = tissue & above(cold, usual + BLUER)
    near = np.asarray(cv2.dilate(pen, np.ones((5, 5), np.uint8)), dtype=np.uint8)
    return components(bluer | pen, near & (bluer | pen), 0, least_share=0.1) & bluer


def _violet_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Violet and purple strokes: the hue of haematoxylin, but denser than all stain of the slide, and even."""
    import cv2

    none = np.zeros_like(coloured)
    broad = np.asarray(cv2.morphologyEx(planes.green, cv2.MORPH_CLOSE, disc(DARK_WIDTH_UM, math.sqrt(cell_um2))))
    stained = coloured & not_above(plus(planes.green, 4), planes.red)
    violet = stained & not_above(plus(planes.red, 4), planes.blue)
    found = [_ink_level(histogram(broad, cells)) for cells in (stained, violet)]
    dense = max((level for level in found if level is not None), default=None)
    if dense is None:
        return none
    violet &= above(planes.chroma, 40)
    violet &= not_above(planes.green, dense)
    violet = np.asarray(cv2.morphologyEx(np.asarray(violet, np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    pen = components(violet, violet, MIN_MARK_UM2 / cell_um2)
    return none if _is_stain(pen, planes.green, coloured) else pen


def _is_stain(pen: Plane, plane: Plane, coloured: Plane) -> bool:
    """Whether what looks like ink is too rough for it; a colour of most of the slide must be very even."""
    is_most = cells_in(pen) > STAIN_SHARE * cells_in(coloured)
    return _roughness(plane, pen) > (SURE_STAIN_ROUGHNESS if is_most else STAIN_ROUGHNESS)


def _ink_level(counts: NDArray[np.int64]) -> int | None:
    """The level of green that parts dense ink from stain, or None: how dense stain is has no gap, ink leaves one.

    Args:
        counts: (256,) how many coloured cells have each level of green.
    """
    near = np.convolve(counts, np.ones(9), "same")
    densest, palest = GAP_LEVELS
    gap = densest + int(np.argmin(near[densest : palest + 1]))
    return gap if near[gap] <= GAP_DEPTH * min(near[:gap].max(), near[gap : gap + GAP_REACH].max()) else None


def _amber_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Yellow, ochre and brown strokes: blue darkest, on a slide whose stain is eosin, which leaves green darkest.

    Without eosin brown may be DAB, and only yellow is ink: it takes several times as much of blue as of green.
    """
    import cv2

    amber = _amber(planes)
    if cells_in(amber) * cell_um2 < MIN_MARK_UM2:
        return np.zeros_like(coloured)
    if _has_eosin(planes, coloured):  # over tissue both are dark, and differ little
        weak = coloured & not_above(plus(planes.blue, 2), planes.green) & denser(planes.blue, planes.green, 1.04)
        weak |= amber
    else:
        amber &= denser(planes.blue, planes.green, 3.0)
        weak = amber
    pen = components(weak, amber, MIN_MARK_UM2 / cell_um2, least_share=0.3)
    if _is_stain(pen, planes.blue, coloured):
        return np.zeros_like(coloured)
    count, labels = cv2.connectedComponents(pen, connectivity=8)
    labels = np.asarray(labels, dtype=np.intp)
    return _at_glass(labels, count, coloured)[labels].astype(np.uint8)


def _has_eosin(planes: Planes, coloured: Plane) -> bool:
    """Whether a good part of what is coloured has the hue of H&E: green is absorbed far more than blue and red.

    Real H&E has 0.45 to 0.97 of its cells there, DAB and a bare counterstain none.
    """
    eosin = coloured & denser(planes.green, planes.blue, 1.6) & denser(planes.green, planes.red, 1.6)
    return cells_in(eosin) >= EOSIN_SHARE * cells_in(coloured)


def _faint_ink(planes: Planes, coloured: Plane, marks: Plane) -> Plane:
    """Weak blue and green on a slide whose tissue clearly is neither: without eosin, blue is a counterstain."""
    if not _has_eosin(planes, coloured & ~marks & 1):
        return np.zeros_like(coloured)
    cold = coloured & not_above(plus(planes.red, 6), planes.green) & ~marks & 1
    tissue = cells_in(coloured & ~marks & 1)
    return cold if cells_in(cold) < 0.1 * tissue else np.zeros_like(cold)


def _warm_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Red and orange strokes: blue as dark as green, where eosin leaves blue brighter."""
    import cv2

    sure = _warm(planes)
    if cells_in(sure) * cell_um2 < 0.3 * MIN_MARK_UM2:
        return np.zeros_like(coloured)
    excess, blue_excess = cv2.subtract(planes.red, planes.green), cv2.subtract(planes.blue, planes.green)
    weak = sure | (coloured & above(excess, 12) & not_above(blue_excess, 8))
    pen = components(weak, sure, MIN_MARK_UM2 / cell_um2, least_share=0.3)
    if cells_in(pen) > 0.6 * cells_in(coloured) and _roughness(planes.darkest, pen) > SURE_STAIN_ROUGHNESS:
        return np.zeros_like(coloured)
    return _blood_left_out(pen, np.asarray(excess), planes.green, coloured)


def _crimson_ink(planes: Planes, coloured: Plane, cell_um2: float) -> Plane:
    """Crimson and rose strokes: the hue of eosin, but denser and more vivid than stain is, and even."""
    import cv2

    none = np.zeros_like(coloured)
    sure = _crimson(planes)
    if cells_in(sure) * cell_um2 < MIN_MARK_UM2:
        return none
    excess = cv2.subtract(planes.red, planes.green)
    red = above(excess, 80) & not_above(planes.blue, planes.red)
    weak: Plane = sure | (red & (not_above(planes.green, 76) | above(excess, 140)))
    weak = np.asarray(cv2.morphologyEx(np.asarray(weak, np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    pen = components(weak, sure & weak, 4 * MIN_MARK_UM2 / cell_um2, least_share=0.6)
    if cells_in(pen) > STAIN_SHARE * cells_in(coloured) or _roughness(planes.green, pen) > STAIN_ROUGHNESS:
        return none
    return _blood_left_out(pen, np.asarray(excess), planes.green, coloured)


def _blood_left_out(pen: Plane, excess: Plane, green: Plane, coloured: Plane) -> Plane:
    """Red regions that touch glass, or are redder or denser than blood: blood inside tissue stays tissue."""
    import cv2

    count, labels = cv2.connectedComponents(pen, connectivity=8)
    if count <= 1:
        return pen
    labels = np.asarray(labels, dtype=np.intp)
    redness = np.bincount(labels.ravel(), excess.ravel(), minlength=count)
    area = np.bincount(labels.ravel(), minlength=count)
    greenness = np.bincount(labels.ravel(), green.ravel(), minlength=count)
    keep = _at_glass(labels, count, coloured) | (redness >= 125 * area) | (greenness <= 35 * area)
    keep[0] = False
    return keep[labels].astype(np.uint8)


def _at_glass(labels: NDArray[np.intp], count: int, coloured: Plane) -> NDArray[np.bool_]:
    """(count,) whether at least a tenth of a region's border lies at glass; the background, label 0, does not."""
    import cv2

    grown = np.asarray(cv2.dilate(labels.astype(np.float32), np.ones((7, 7), np.uint8))).astype(np.intp)
    ring = (labels == 0) & (grown > 0)
    border = np.bincount(grown[ring], minlength=count)
    glass = np.bincount(grown[ring & (coloured == 0)], minlength=count)
    return (glass >= 0.1 * border) & (np.arange(count) > 0)


def _dark_marks(planes: Planes, coloured: Plane, um_per_cell: float, size: float) -> Plane:
    """Broad regions that are dark: black ink, cover-slip edges, black borders; with colour only beside eosin."""
    import cv2

    dark = _dark(planes)
    broad = _broad(dark, um_per_cell / size)
    if _has_eosin(planes, coloured):  # not scaled by the picture's size: small regions of H&E are as dark
        deep = _broad(_deep(planes), um_per_cell)
        broad |= deep
        dark |= deep
    broad = np.asarray(cv2.dilate(broad, disc(DARK_WIDTH_UM, um_per_cell / size)), dtype=np.uint8) & dark
    return components(broad, broad, MIN_MARK_UM2 * size**2 / um_per_cell**2)


def _broad(region: Plane, um_per_cell: float) -> Plane:
    """What of a region is at least ``DARK_WIDTH_UM`` wide."""
    import cv2

    return np.asarray(cv2.morphologyEx(region, cv2.MORPH_OPEN, disc(DARK_WIDTH_UM, um_per_cell)), dtype=np.uint8)


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
