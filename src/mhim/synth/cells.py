"""Where the cells of a slide lie, kind by kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mhim.synth.canvas import Canvas
from mhim.synth.geometry import FIELD_UM, Layout, Region, Shape
from mhim.synth.nuclei import COUNTS_PER_UNIT, N_ANGLES
from mhim.synth.shapes import inset, resample, scatter, smooth_noise

PER_MM2 = 1e-6
"""Cells per square millimetre, in cells per square micrometre."""

Stamps = dict[str, list[list[np.ndarray]]]
Cells = tuple[str, np.ndarray, np.ndarray]
"""Kind, centres float64 (cell, 2) [um], directions float64 (cell,) [rad]."""


def paint_nuclei(canvas: Canvas, layout: Layout, stamps: Stamps, rng: np.random.Generator) -> None:
    """Draw every nucleus and red cell of a slide."""
    for kind, xy_um, angle in _stroma(canvas, layout, rng):
        canvas.stamp(canvas.haematoxylin, stamps[kind], xy_um, angle, rng)
    for shape in layout.shapes:
        for kind, xy_um, angle in _inside(canvas, layout, shape, rng):
            canvas.stamp(canvas.haematoxylin, stamps[kind], xy_um, angle, rng)
        if shape.region == Region.VESSEL:
            _paint_blood(canvas, shape, rng)


def _stroma(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> Iterator[Cells]:
    """Fibroblasts along the fibres, plump cells and strewn lymphocytes; somewhat fewer between subtle tumour cells."""
    xy_um = scatter(rng, np.zeros(2), np.array(layout.size_um), 5000 * PER_MM2)
    region = canvas.region_at(xy_um)
    xy_um = xy_um[(region == Region.STROMA) | ((region == Region.SUBTLE) & (rng.uniform(size=len(region)) < 0.75))]
    inflamed = smooth_noise(rng, layout.tissue.shape, 18)
    row, column = _cell(layout, xy_um)
    density = layout.density[row, column]
    xy_um = xy_um[rng.uniform(size=len(xy_um)) < np.clip(0.40 * density, 0, 0.9)]
    row, column = _cell(layout, xy_um)
    share_lymphocytes = np.clip(0.10 + 0.22 * inflamed[row, column], 0.04, 0.6)
    pick = rng.uniform(size=len(xy_um))
    along = fibre_angle(layout, xy_um)
    is_lymphocyte = pick < share_lymphocytes
    is_plump = ~is_lymphocyte & (pick < share_lymphocytes + 0.30 * (1 - share_lymphocytes))
    is_spindle = ~is_lymphocyte & ~is_plump
    for kind, chosen, spread in (
        ("spindle", is_spindle, 0.22),
        ("plump", is_plump, 0.5),
        ("lymphocyte", is_lymphocyte, 3.0),
    ):
        yield kind, xy_um[chosen], along[chosen] + rng.normal(scale=spread, size=int(chosen.sum()))


def _inside(canvas: Canvas, layout: Layout, shape: Shape, rng: np.random.Generator) -> Iterator[Cells]:
    """The cells that belong to one outline."""
    match shape.region:
        case Region.EPITHELIUM:
            yield _ring(canvas, shape, rng)
        case Region.LYMPHOID:
            yield _filled(canvas, shape, rng, "lymphocyte", float(rng.uniform(13000, 20000)), 0.92)
            yield _around(canvas, shape, rng)
        case Region.CRUSHED:
            kind, xy_um, angle = _filled(canvas, shape, rng, "crushed", 4200, 0.8)
            yield kind, xy_um, fibre_angle(layout, xy_um) + 0.25 * angle
        case Region.VESSEL:
            xy_um, along = resample(shape.outline_um, 17.0)
            keep = rng.uniform(size=len(xy_um)) < 0.75
            yield "spindle", xy_um[keep], along[keep]
        case Region.SUBTLE:
            kind, xy_um, angle = _filled(canvas, shape, rng, "subtle", 4600, 0.72)
            yield kind, xy_um, fibre_angle(layout, xy_um) + 0.6 * angle
        case Region.SALIENT:
            yield _filled(canvas, shape, rng, "salient", 6200, 0.93)
            yield _filled(canvas, shape, rng, "lymphocyte", 6200, 0.06)
        case _:
            pass


def _filled(canvas: Canvas, shape: Shape, rng: np.random.Generator, kind: str, per_mm2: float, share: float) -> Cells:
    """Cells strewn over an outline: a share of an irregular grid; directions are standard normal."""
    low, high = shape.outline_um.min(axis=0), shape.outline_um.max(axis=0)
    xy_um = scatter(rng, low, high, per_mm2 * PER_MM2)
    xy_um = xy_um[canvas.region_at(xy_um) == shape.region]
    xy_um = xy_um[rng.uniform(size=len(xy_um)) < share]
    return kind, xy_um, rng.normal(size=len(xy_um))


def _ring(canvas: Canvas, shape: Shape, rng: np.random.Generator) -> Cells:
    """Basal nuclei of a gland, their length towards the lumen; in places a second row."""
    rows = []
    for depth, step, share in ((rng.uniform(5.5, 7.5), 6.4, 0.97), (rng.uniform(11, 13), 9.0, rng.choice([0.1, 0.6]))):
        xy_um, along = resample(inset(shape.outline_um, depth), step)
        keep = rng.uniform(size=len(xy_um)) < share
        rows.append((xy_um[keep] + rng.normal(scale=0.9, size=(int(keep.sum()), 2)), along[keep]))
    xy_um, along = (np.concatenate(part) for part in zip(*rows, strict=True))
    is_in = canvas.region_at(xy_um) == Region.EPITHELIUM
    xy_um, along = xy_um[is_in], along[is_in]
    return "epithelium", xy_um, along + np.pi / 2 + rng.normal(scale=0.2, size=len(along))


def _around(canvas: Canvas, shape: Shape, rng: np.random.Generator) -> Cells:
    """Lymphocytes that stray from an aggregate into the stroma."""
    edge, _ = resample(shape.outline_um, 7.0)
    xy_um = edge + rng.normal(scale=14, size=edge.shape)
    xy_um = xy_um[canvas.region_at(xy_um) == Region.STROMA]
    return "lymphocyte", xy_um, rng.uniform(0, np.pi, len(xy_um))


def _paint_blood(canvas: Canvas, shape: Shape, rng: np.random.Generator) -> None:
    """Red cells in a vessel, more in some than in others."""
    low, high = shape.outline_um.min(axis=0), shape.outline_um.max(axis=0)
    xy_um = scatter(rng, low, high, 22000 * PER_MM2)
    xy_um = xy_um[canvas.region_at(xy_um) == Region.VESSEL]
    xy_um = xy_um[rng.uniform(size=len(xy_um)) < rng.choice([0.15, 0.6, 0.9])]
    disc = _red_cell(canvas.mpp)
    canvas.stamp(canvas.eosin, [[disc]] * N_ANGLES, xy_um, np.zeros(len(xy_um)), rng)


def _red_cell(mpp: float) -> np.ndarray:
    half = int(np.ceil(4.2 / mpp))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * mpp
    radius_um = np.hypot(x, y)
    disc = 1 / (1 + np.exp((radius_um - 3.4) / 0.3)) * (1 - 0.2 * np.exp(-((radius_um / 1.6) ** 2)))
    return (disc * 1.25 * COUNTS_PER_UNIT).astype(np.uint8)


def fibre_angle(layout: Layout, xy_um: np.ndarray) -> np.ndarray:
    """Direction of the fibres at each point, float64 (point,) [rad]."""
    slope_y, slope_x = np.gradient(layout.bend_um[1], FIELD_UM)
    row, column = _cell(layout, xy_um)
    across_x = slope_x[row, column] - np.sin(layout.grain_angle)
    across_y = slope_y[row, column] + np.cos(layout.grain_angle)
    return np.arctan2(across_y, across_x) - np.pi / 2


def _cell(layout: Layout, xy_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the coarse fields at each point."""
    rows, columns = layout.tissue.shape
    column, row = np.floor(xy_um / FIELD_UM).astype(np.int64).T
    return np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)
