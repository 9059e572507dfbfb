"""From geometry to stain: ground, glands, fat, vessels, tumour, folds. Nuclei are in ``cells``."""

from __future__ import annotations

import cv2
import numpy as np

from mhim.synth.canvas import Canvas, window
from mhim.synth.cells import paint_nuclei
from mhim.synth.geometry import Layout, Region
from mhim.synth.nuclei import make_stamps
from mhim.synth.texture import TEXTURE_UM, Textures

LEVEL_STEP = 16
"""Slide sizes are multiples of this, so that every pyramid level and mask is a whole number of pixels."""
_BLOCK_PX = 512


def size_in_px(size_um: tuple[float, float], mpp: float) -> tuple[int, int]:
    """Width and height of a slide in pixels at a scale, multiples of ``LEVEL_STEP``."""
    width, height = (max(round(extent / mpp / LEVEL_STEP), 1) * LEVEL_STEP for extent in size_um)
    return width, height


def paint(layout: Layout, textures: Textures, texture_seed: int, mpp: float, rng: np.random.Generator) -> Canvas:
    """Stain planes and regions of a slide at a scanner's scale.

    Args:
        layout: the geometry.
        textures: fields shared by the cohort.
        texture_seed: seed of the nuclear stamps shared by the cohort.
        mpp: micrometres per pixel.
        rng: source of what the geometry leaves open, such as the place of each nucleus.
    """
    canvas = Canvas(size_in_px(layout.size_um, mpp), mpp)
    grain = cv2.resize(textures.grain, None, fx=TEXTURE_UM / mpp, fy=TEXTURE_UM / mpp, interpolation=cv2.INTER_LINEAR)
    _paint_ground(canvas, layout, textures.fibres, grain)
    for shape in layout.shapes:
        canvas.mark(shape.outline_um, shape.region)
    _paint_shapes(canvas, layout, grain, rng)
    paint_nuclei(canvas, layout, make_stamps(texture_seed, mpp), rng)
    cv2.subtract(canvas.eosin, cv2.convertScaleAbs(canvas.haematoxylin, alpha=0.35), dst=canvas.eosin)
    for fold in layout.folds:
        canvas.darken(fold.line_um, fold.width_um, float(rng.uniform(1.6, 2.0)))
    return canvas


def _paint_ground(canvas: Canvas, layout: Layout, fibres: np.ndarray, grain: np.ndarray) -> None:
    """Fibrous stroma wherever there is tissue: the fibre texture, bent along the fields of the layout."""
    height, width = canvas.regions.shape
    cos, sin = np.cos(layout.grain_angle), np.sin(layout.grain_angle)
    tiled = np.tile(fibres, (3, 3))
    fields = [layout.tissue, layout.bend_um[0], layout.bend_um[1], _looseness(layout)]
    scale = (layout.tissue.shape[0] / height, layout.tissue.shape[1] / width)
    for top in range(0, height, _BLOCK_PX):
        for left in range(0, width, _BLOCK_PX):
            box = (slice(top, min(top + _BLOCK_PX, height)), slice(left, min(left + _BLOCK_PX, width)))
            tissue, bend_x, bend_y, loose = _upsample(fields, box, scale)
            if tissue.max() <= 0:
                continue
            x_um, y_um = (
                np.arange(part.start, part.stop, dtype=np.float32) * np.float32(canvas.mpp) for part in box[::-1]
            )
            along = _wrapped(bend_x + (x_um * np.float32(cos))[None, :] + (y_um * np.float32(sin))[:, None])
            across = _wrapped(bend_y - (x_um * np.float32(sin))[None, :] + (y_um * np.float32(cos))[:, None])
            bent = cv2.remap(tiled, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            eosin = bent * loose
            eosin *= window(grain, box) * np.float32(0.55 / 128) + np.float32(0.45)
            tissue += (eosin - np.float32(90)) * np.float32(2.2e-5)
            np.clip(tissue * np.float32(1.1e5), 0, eosin, out=eosin)
            canvas.regions[box] = tissue > 0
            canvas.eosin[box] = eosin
            canvas.haematoxylin[box] = eosin * np.float32(0.09)


def _looseness(layout: Layout) -> np.ndarray:
    """Multiplier of the stroma's stain: paler where cells are few."""
    return (np.clip(0.92 + 0.16 * np.log(layout.density), 0.6, 1.2) * layout.style.eosin).astype(np.float32)


def _wrapped(coordinate_um: np.ndarray) -> np.ndarray:
    """Texture coordinate of a block, moved by whole repeats to start in the first one."""
    cells = coordinate_um * np.float32(1 / TEXTURE_UM)
    return cells - np.float32(np.floor(cells.min() / 1024) * 1024)


def _upsample(fields: list[np.ndarray], box: tuple[slice, slice], scale: tuple[float, float]) -> list[np.ndarray]:
    """The part of coarse fields under a box of pixels, bilinear, float32."""
    rows, columns = (
        np.clip((np.arange(part.start, part.stop) + 0.5) * step - 0.5, 0, n - 1)
        for part, step, n in zip(box, scale, fields[0].shape, strict=True)
    )
    (r0, fr), (c0, fc) = ((np.floor(at).astype(int), (at % 1).astype(np.float32)) for at in (rows, columns))
    parts = []
    for field in fields:
        r1, c1 = np.minimum(r0 + 1, field.shape[0] - 1), np.minimum(c0 + 1, field.shape[1] - 1)
        near = field[r0[0] : r1[-1] + 1]
        wide = near[:, c0] * (1 - fc) + near[:, c1] * fc
        low, high = wide[r0 - r0[0]], wide[r1 - r0[0]]
        high -= low
        high *= fr[:, None]
        parts.append(np.add(low, high, out=low))
    return parts


def _paint_shapes(canvas: Canvas, layout: Layout, grain: np.ndarray, rng: np.random.Generator) -> None:
    """The ground inside every outline, before nuclei."""
    for shape in layout.shapes:
        outline = shape.outline_um
        match shape.region:
            case Region.FAT:
                canvas.fill(outline, haematoxylin=0, eosin=0.02, soft_um=0.7)
            case Region.EPITHELIUM:
                eosin, haematoxylin = rng.uniform(0.50, 0.66), rng.uniform(0.12, 0.2)
                canvas.fill(outline, haematoxylin=haematoxylin, eosin=eosin, soft_um=0.8, grain=grain)
            case Region.LUMEN:
                eosin = float(rng.choice([0.02, 0.06, 0.42], p=[0.6, 0.2, 0.2]))
                canvas.fill(outline, haematoxylin=0.0, eosin=eosin, soft_um=0.8, grain=grain)
            case Region.LYMPHOID:
                canvas.fill(outline, haematoxylin=0.10, eosin=0.42, soft_um=5, grain=grain)
            case Region.CRUSHED:
                canvas.fill(outline, haematoxylin=0.26, eosin=0.6, soft_um=6, grain=grain)
            case Region.VESSEL:
                canvas.fill(outline, haematoxylin=0.0, eosin=0.04, soft_um=0.7)
            case Region.SALIENT:
                eosin, haematoxylin = rng.uniform(0.48, 0.66), rng.uniform(0.14, 0.24)
                canvas.fill(outline, haematoxylin=haematoxylin, eosin=eosin, soft_um=2.5, grain=grain)
            case _:
                pass
