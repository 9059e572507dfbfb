"""From stain to image: two scanners, their colour and sharpness, noise, uneven light and dirt."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mhim.synth.canvas import Canvas
from mhim.synth.geometry import Region, Style
from mhim.synth.nuclei import COUNTS_PER_UNIT
from mhim.synth.shapes import blob, smooth_noise

HAEMATOXYLIN_OD = (0.53, 0.69, 0.31)
"""Optical density of one unit of haematoxylin in red, green and blue."""
EOSIN_OD = (0.045, 0.27, 0.125)
"""Optical density of one unit of eosin in red, green and blue."""
_NOISE_MEAN = 8
_SHADE_MEAN = 3
_STRIP_PX = 256


@dataclass(frozen=True)
class Scanner:
    """How a scanner renders colour.

    Attributes:
        name: site name in the cohort table.
        white: empty glass, red green blue [grey levels].
        mix: 3x3 crosstalk of the channels (output row, input column) on transmitted light; rows sum to 1.
        gamma: exponent on transmitted light.
        blur_um: standard deviation of the blur.
        blur_share: how much of the blurred image is mixed in; a negative share sharpens.
    """

    name: str
    white: tuple[float, float, float]
    mix: tuple[tuple[float, float, float], ...]
    gamma: float
    blur_um: float
    blur_share: float


SCANNERS = {
    "A": Scanner(
        name="scanner-A",
        white=(242, 241, 243),
        mix=((1.04, -0.04, 0.0), (-0.02, 1.04, -0.02), (0.0, -0.03, 1.03)),
        gamma=1.05,
        blur_um=0.45,
        blur_share=-0.3,
    ),
    "B": Scanner(
        name="scanner-B",
        white=(235, 237, 233),
        mix=((0.88, 0.09, 0.03), (0.06, 0.90, 0.04), (0.02, 0.13, 0.85)),
        gamma=0.90,
        blur_um=0.36,
        blur_share=1.0,
    ),
}


def expose(canvas: Canvas, scanner: Scanner, style: Style, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image that a scanner takes of a slide, uint8 (h, w, 3).

    Args:
        canvas: stain planes.
        scanner: colour and sharpness.
        style: stain strength of the case.
        noise: seamless camera noise, uint8 (h, w, 3) around 8.
        rng: places noise, uneven light and dirt.
    """
    height, width = canvas.regions.shape
    table = _colour_table(scanner, style)
    shade = _shade(rng, (height, width))
    image = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, height))
        index = canvas.haematoxylin[rows].astype(np.uint16)
        index <<= 8
        index |= canvas.eosin[rows]
        colours = np.take(table, index).view(np.uint8).reshape(*index.shape, 4)
        cv2.cvtColor(colours, cv2.COLOR_RGBA2RGB, dst=image[rows])
    image = _focus(image, scanner, canvas.mpp)
    add_dirt(image, canvas, rng)
    left = rng.integers(0, noise.shape[1])
    columns = (np.arange(width) + left) % noise.shape[1]
    for top in range(0, height, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, height))
        offset = int(rng.integers(0, noise.shape[0] - _STRIP_PX))
        grain = np.take(noise[offset : offset + rows.stop - rows.start], columns, axis=1)
        cv2.add(grain, cv2.merge([shade[rows]] * 3), dst=grain)
        cv2.subtract(image[rows], grain, dst=image[rows])
    return image


def _colour_table(scanner: Scanner, style: Style) -> np.ndarray:
    """Colour of every pair of stains as packed RGBA, uint32 (65536,), indexed by haematoxylin * 256 + eosin."""
    counts = np.arange(256) / COUNTS_PER_UNIT
    density = counts[:, None, None] * style.haematoxylin * np.array(HAEMATOXYLIN_OD) + counts[None, :, None] * np.array(
        EOSIN_OD
    )
    light = np.clip(10.0**-density @ np.array(scanner.mix).T, 0.0, None) ** scanner.gamma
    lift = _NOISE_MEAN + _SHADE_MEAN
    colours = np.full((256, 256, 4), 255, dtype=np.uint8)
    colours[..., :3] = np.clip(np.round(light * np.array(scanner.white) + lift), 0, 255)
    return colours.reshape(-1, 4).view(np.uint32).ravel()


def _shade(rng: np.random.Generator, shape_hw: tuple[int, int]) -> np.ndarray:
    """Unevenness of glass and light, uint8 (h, w) around ``_SHADE_MEAN``."""
    coarse = np.clip(_SHADE_MEAN + 1.3 * smooth_noise(rng, (40, 40), 10), 0, 2 * _SHADE_MEAN)
    return cv2.resize(coarse, shape_hw[::-1], interpolation=cv2.INTER_LINEAR).round().astype(np.uint8)


def _focus(image: np.ndarray, scanner: Scanner, mpp: float) -> np.ndarray:
    """Blur of the optics, or sharpening of the firmware."""
    blurred = cv2.GaussianBlur(image, (5, 5), scanner.blur_um / mpp)
    return cv2.addWeighted(image, 1 - scanner.blur_share, blurred, scanner.blur_share, 0)


def add_dirt(image: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> None:
    """Dust, hairs and flecks of tissue, drawn into the image in place; none of it is tissue of the slide."""
    height, width = canvas.regions.shape
    extent_um = np.array([width, height]) * canvas.mpp
    area_mm2 = float(np.prod(extent_um)) * 1e-6
    for _ in range(rng.poisson(7 * area_mm2)):
        outline = blob(rng, float(rng.lognormal(np.log(25), 0.9)), wobble=0.3) + rng.uniform(0, 1, 2) * extent_um
        colour = np.array([80, 76, 72]) + rng.normal(scale=12, size=3)
        _smear(image, canvas.mpp, outline, colour, rng.uniform(0.3, 0.85), rng.uniform(0.4, 2.5), is_line=False)
    for _ in range(rng.poisson(3 * area_mm2)):
        centre = rng.uniform(0, 1, 2) * extent_um
        if canvas.region_at(centre[None])[0] == Region.GLASS:
            outline = blob(rng, float(rng.lognormal(np.log(110), 0.8)), elongation=2, wobble=0.3) + centre
            _smear(image, canvas.mpp, outline, np.array([222, 170, 200]), 0.7, 1.0, is_line=False)
    for _ in range(rng.poisson(0.25 * area_mm2)):
        steps = np.cumsum(rng.normal(scale=0.25, size=30)) + rng.uniform(0, 2 * np.pi)
        line = np.cumsum(np.stack([np.cos(steps), np.sin(steps)], axis=1) * rng.uniform(6, 16), axis=0)
        line += rng.uniform(0, 1, 2) * extent_um
        _smear(
            image, canvas.mpp, line, np.array([110, 112, 125]), rng.uniform(0.3, 0.7), rng.uniform(0.8, 2), is_line=True
        )


def _smear(
    image: np.ndarray,
    mpp: float,
    outline_um: np.ndarray,
    colour: np.ndarray,
    opacity: float,
    soft_um: float,
    is_line: bool,
) -> None:
    """Blend a colour into the image inside an outline or along a line."""
    margin = int(4 * soft_um / mpp) + 4
    low = np.clip(np.floor(outline_um.min(axis=0) / mpp).astype(int) - margin, 0, image.shape[1::-1])
    high = np.clip(np.ceil(outline_um.max(axis=0) / mpp).astype(int) + margin, 0, image.shape[1::-1])
    view = image[low[1] : high[1], low[0] : high[0]]
    if not view.size:
        return
    cover = np.zeros(view.shape[:2], dtype=np.uint8)
    points = np.round((outline_um / mpp - low - 0.5) * 16).astype(np.int32)
    if is_line:
        cv2.polylines(cover, [points], False, 255, max(round(2.5 / mpp), 1), cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(cover, [points], 255, cv2.LINE_AA, 4)
    weight = cv2.GaussianBlur(cover, (0, 0), soft_um / mpp).astype(np.float32)[..., None] * (opacity / 255)
    view[:] = (view + (colour.astype(np.float32) - view) * weight).astype(np.uint8)
