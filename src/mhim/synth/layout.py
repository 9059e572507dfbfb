"""Lays out one slide: tissue, tumour, glands, fat, lymphocytes, artefacts. Nothing is drawn here."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import Voronoi

from mhim.errors import ConfigError
from mhim.synth.config import SynthConfig
from mhim.synth.geometry import FIELD_UM, Fold, Layout, Region, Shape, Style
from mhim.synth.plan import SALIENT, SUBTLE, SlidePlan
from mhim.synth.shapes import blob, inset, polygon_area, round_corners, smooth_noise


class Room:
    """Free space on a slide: how far each coarse cell is from glass and from what was placed, float32 [um]."""

    def __init__(self, tissue: np.ndarray) -> None:
        inside = (tissue > 0).astype(np.uint8)
        self.clearance_um = cv2.distanceTransform(inside, cv2.DIST_L2, 5) * np.float32(FIELD_UM)
        rows, columns = tissue.shape
        self._x_um, self._y_um = (np.arange(n, dtype=np.float32) * FIELD_UM + FIELD_UM / 2 for n in (columns, rows))

    def find(self, rng: np.random.Generator, need_um: float, where: np.ndarray | None = None) -> np.ndarray | None:
        """A random place with ``need_um`` of free space around, float64 (2,) [um], or None when there is none."""
        is_free = self.clearance_um >= need_um
        choices = np.flatnonzero(is_free if where is None else is_free & where)
        if not choices.size:
            return None
        row, column = np.divmod(rng.choice(choices), self.clearance_um.shape[1])
        return np.array([self._x_um[column], self._y_um[row]]) + rng.uniform(-3, 3, 2)

    def take(self, centre_um: np.ndarray, radius_um: float) -> None:
        """Mark a disc as used."""
        distance = np.hypot(self._x_um[None, :] - centre_um[0], self._y_um[:, None] - centre_um[1])
        np.minimum(self.clearance_um, distance - radius_um, out=self.clearance_um, casting="same_kind")


def lay_out(config: SynthConfig, plan: SlidePlan) -> Layout:
    """Geometry of the planned slide; the same plan and configuration give the same geometry."""
    style = draw_style(np.random.default_rng([plan.case_seed, 7]))
    rng = np.random.default_rng([plan.seed, 1])
    size_um = (config.width_um, config.height_um)
    shape_hw = (int(np.ceil(config.height_um / FIELD_UM)), int(np.ceil(config.width_um / FIELD_UM)))
    fraction = rng.uniform(config.tissue_fraction_min, config.tissue_fraction_max)
    tissue = _tissue(rng, shape_hw, fraction)
    room = Room(tissue)
    tumour = _tumour(rng, room, plan, config, float(np.mean(tissue > 0)) * size_um[0] * size_um[1])
    shapes = [
        *_fat(rng, room, style),
        *_glands(rng, room, style),
        *_lymphoid(rng, room, style),
        *_crushed(rng, room),
        *_vessels(rng, room),
        *tumour,
    ]
    return Layout(
        size_um=size_um,
        tissue=tissue,
        grain_angle=float(rng.uniform(0, np.pi)),
        bend_um=np.stack([smooth_noise(rng, shape_hw, 26) * 25, smooth_noise(rng, shape_hw, 26) * 48])
        + np.stack([smooth_noise(rng, shape_hw, 6) * 5, smooth_noise(rng, shape_hw, 6) * 6]),
        density=np.exp(0.42 * smooth_noise(rng, shape_hw, 14)) * np.float32(style.cellularity),
        shapes=tuple(shapes),
        folds=_folds(rng, tissue),
        style=style,
    )


def draw_style(rng: np.random.Generator) -> Style:
    """Random look of a case."""
    return Style(
        glands=rng.uniform(0.1, 1.0),
        fat=rng.uniform(0, 1.0),
        lymphoid=rng.uniform(0, 1.0),
        cellularity=float(np.exp(rng.normal(scale=0.18))),
        haematoxylin=float(np.exp(rng.normal(scale=0.10))),
        eosin=float(np.exp(rng.normal(scale=0.12))),
    )


def _tissue(rng: np.random.Generator, shape_hw: tuple[int, int], fraction: float) -> np.ndarray:
    """Field that is positive on ``fraction`` of its cells: a few ragged pieces away from the edge."""
    rows, columns = shape_hw
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) + 0.5
    n_pieces = int(rng.integers(2, 5))
    turn = rng.uniform(0, 2 * np.pi)
    field = np.full(shape_hw, -np.inf, dtype=np.float32)
    for piece in range(n_pieces):
        around = turn + 2 * np.pi * piece / n_pieces + rng.normal(scale=0.15)
        centre = 0.5 + rng.uniform(0.2, 0.27) * np.array([np.cos(around), np.sin(around)])
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 2.2) ** 0.5
        dx, dy = x - centre[0] * columns, y - centre[1] * rows
        along, across = (dx * np.cos(angle) + dy * np.sin(angle)), (dy * np.cos(angle) - dx * np.sin(angle))
        distance = np.hypot(along / stretch, across * stretch) / (min(shape_hw) * rng.uniform(0.85, 1.15))
        np.maximum(field, -distance, out=field)
    field += 0.045 * smooth_noise(rng, shape_hw, 22) + 0.012 * smooth_noise(rng, shape_hw, 6)
    edge = np.minimum(np.minimum(x, columns - x), np.minimum(y, rows - y)) * FIELD_UM
    field -= (0.16 * np.exp(-edge / 90)).astype(np.float32) + (edge < 30) * np.float32(9)
    return field - np.float32(np.quantile(field, 1 - fraction))


def _tumour(
    rng: np.random.Generator, room: Room, plan: SlidePlan, config: SynthConfig, tissue_um2: float
) -> list[Shape]:
    """Foci of each kind of the plan; together close to the wanted share of the tissue."""
    wanted = plan.tumour_share * tissue_um2
    share_of = {SUBTLE: 1.0}
    if SALIENT in plan.kinds:
        salient = rng.uniform(0.4, 0.75)
        share_of = {SALIENT: salient, SUBTLE: 1 - salient}
    shapes: list[Shape] = []
    for kind in plan.kinds:
        left = max(wanted * share_of[kind], config.focus_um2_min)
        region = Region.SALIENT if kind == SALIENT else Region.SUBTLE
        typical, longest = (26000, 1.8) if kind == SALIENT else (9000, 2.6)
        while left > 0:
            area = min(left, max(config.focus_um2_min, typical * float(np.exp(rng.normal(scale=0.5)))))
            if left - area < config.focus_um2_min:
                area = left
            outline = _place_blob(rng, room, area, rng.uniform(1.0, longest))
            if outline is None:
                break
            shapes.append(Shape(region, outline))
            left -= polygon_area(outline)
            if left < config.focus_um2_min / 4:
                break
        if not any(shape.region == region for shape in shapes):
            raise ConfigError(f"{plan.slide_id}: no room for {kind} tumour; raise width_um and height_um")
    return shapes


def _place_blob(rng: np.random.Generator, room: Room, area_um2: float, elongation: float) -> np.ndarray | None:
    """Outline in free tissue, of the given area if there is room, else of the largest that fits."""
    for shrink in (1.0, 1.0, 0.8, 0.6, 0.4, 0.25, 0.15):
        outline = blob(rng, area_um2 * shrink, elongation=elongation, angle=rng.uniform(0, np.pi), wobble=0.16)
        radius = float(np.linalg.norm(outline, axis=1).max())
        centre = room.find(rng, radius + 12)
        if centre is not None:
            room.take(centre, radius)
            return outline + centre
    return None


def _glands(rng: np.random.Generator, room: Room, style: Style) -> list[Shape]:
    """Glands in groups: epithelium with a lumen inside."""
    zone = smooth_noise(rng, room.clearance_um.shape, 30) > 0.9 - 1.4 * style.glands
    n_most = int(zone.size * FIELD_UM**2 / 22000 * style.glands)
    shapes: list[Shape] = []
    for radius in rng.lognormal(np.log(44), 0.3, n_most):
        centre = room.find(rng, radius * 1.12 + 9, zone)
        if centre is None:
            continue
        angle, elongation = rng.uniform(0, np.pi), rng.uniform(1.0, 1.7)
        outline = centre + blob(rng, np.pi * radius**2, elongation=elongation, angle=angle, wobble=0.09)
        room.take(centre, float(np.linalg.norm(outline - centre, axis=1).max()))
        shapes.append(Shape(Region.EPITHELIUM, outline))
        lumen = round_corners(inset(outline, rng.uniform(15, 21))[::2])
        if polygon_area(lumen) > 60:
            shapes.append(Shape(Region.LUMEN, lumen))
    return shapes


def _fat(rng: np.random.Generator, room: Room, style: Style) -> list[Shape]:
    """Lobules of fat cells with thin walls between."""
    shapes: list[Shape] = []
    for _ in range(rng.poisson(2.2 * style.fat)):
        radius = rng.uniform(90, 210)
        centre = room.find(rng, radius * 0.75)
        if centre is None:
            continue
        room.take(centre, radius)
        reach = blob(rng, np.pi * radius**2, elongation=rng.uniform(1, 1.8), angle=rng.uniform(0, np.pi)) + centre
        shapes += [Shape(Region.FAT, cell) for cell in _fat_cells(rng, reach, rng.uniform(46, 62))]
    return shapes


def _fat_cells(rng: np.random.Generator, reach: np.ndarray, spacing_um: float) -> list[np.ndarray]:
    n = max(int(polygon_area(reach) / spacing_um**2 * 2.5), 12)
    seeds = rng.uniform(reach.min(axis=0) - spacing_um, reach.max(axis=0) + spacing_um, (n, 2))
    kept: list[np.ndarray] = []
    for seed in seeds:
        if all(np.hypot(*(seed - other)) > spacing_um * 0.75 for other in kept):
            kept.append(seed)
    diagram = Voronoi(np.array(kept))
    cells = []
    for region in (diagram.regions[index] for index in diagram.point_region):
        if -1 in region or not region:
            continue
        corners = diagram.vertices[region]
        centre = corners.mean(axis=0)
        is_inside = cv2.pointPolygonTest(reach.astype(np.float32), tuple(centre.tolist()), False) > 0
        if is_inside and np.abs(corners - centre).max() < 2 * spacing_um:
            cells.append(round_corners(inset(corners, rng.uniform(1.5, 2.8), floor=0.5)))
    return cells


def _lymphoid(rng: np.random.Generator, room: Room, style: Style) -> list[Shape]:
    """Dense aggregates of lymphocytes; they occur with and without tumour alike."""
    shapes: list[Shape] = []
    for _ in range(rng.poisson(0.8 + 3.2 * style.lymphoid)):
        area = float(rng.lognormal(np.log(14000), 0.6))
        outline = _place_blob(rng, room, area, rng.uniform(1, 2))
        if outline is not None:
            shapes.append(Shape(Region.LYMPHOID, outline))
    return shapes


def _crushed(rng: np.random.Generator, room: Room) -> list[Shape]:
    """Patches where nuclei were crushed to dark streaks."""
    outlines = [_place_blob(rng, room, rng.uniform(5000, 20000), rng.uniform(2, 4)) for _ in range(rng.poisson(0.9))]
    return [Shape(Region.CRUSHED, outline) for outline in outlines if outline is not None]


def _vessels(rng: np.random.Generator, room: Room) -> list[Shape]:
    """Small vessels; their wall and blood are drawn around and into the outline."""
    outlines = [_place_blob(rng, room, rng.uniform(500, 3500), rng.uniform(1, 2.2)) for _ in range(rng.poisson(6))]
    return [Shape(Region.VESSEL, outline) for outline in outlines if outline is not None]


def _folds(rng: np.random.Generator, tissue: np.ndarray) -> tuple[Fold, ...]:
    """Folds through random points of the tissue."""
    folds = []
    inside = np.argwhere(tissue > 0)[:, ::-1] * FIELD_UM
    for _ in range(rng.poisson(0.7)):
        length, angle = rng.uniform(250, 700), rng.uniform(0, np.pi)
        along = np.linspace(-length / 2, length / 2, 24)
        across = np.cumsum(rng.normal(scale=2.5, size=24)) + 25 * np.sin(along / rng.uniform(90, 220))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        line = np.stack([along, across], axis=1) @ turn + inside[rng.integers(len(inside))]
        folds.append(Fold(line, float(rng.uniform(14, 38))))
    return tuple(folds)
