"""Pictures that look like stained tissue, to measure what a runtime does to features and to calibrate int8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HAEMATOXYLIN = np.array([0.650, 0.704, 0.286], dtype=np.float32)
_EOSIN = np.array([0.072, 0.990, 0.105], dtype=np.float32)


PROBES = 8
"""Tiles that a deviation is measured on."""


def probe_tiles(count: int, height_px: int, width_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Made-up tissue: eosin in smooth fields, nuclei in haematoxylin, lumens, camera noise.

    The same for the same arguments. Optical densities add up as by Ruifrok and Johnston (2001).

    Returns:
        (count, height_px, width_px, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    tiles = np.empty((count, height_px, width_px, 3), np.uint8)
    for index in range(count):
        shape = height_px, width_px
        eosin = rng.uniform(0.05, 0.5) * (0.4 + _field(rng, shape, 40) + 0.6 * _field(rng, shape, 6))
        nuclei = _nuclei(rng, shape, int(rng.integers(5, 120) * height_px * width_px / 224**2) + 1)
        haematoxylin = rng.uniform(0.4, 1.2) * nuclei * (0.6 + 0.4 * _field(rng, shape, 3)) + 0.05
        tissue = (_field(rng, shape, 60) > rng.uniform(-0.2, 0.35)).astype(np.float32)
        density = (eosin * tissue)[..., None] * _EOSIN + (haematoxylin * tissue)[..., None] * _HAEMATOXYLIN
        light = 240 * 10**-density + rng.normal(0, 2, (*shape, 3))
        tiles[index] = light.clip(0, 255)
    return tiles


def _field(rng: np.random.Generator, shape: tuple[int, int], cell_px: int) -> NDArray[np.float32]:
    """Smooth noise in [0, 1]: random values on a lattice, bilinear between."""
    rows, columns = (length // cell_px + 2 for length in shape)
    lattice = rng.random((rows, columns), dtype=np.float32)
    ys, xs = (np.arange(length) / cell_px for length in shape)
    y0, x0 = ys.astype(int), xs.astype(int)
    y, x = (ys - y0)[:, None].astype(np.float32), (xs - x0)[None].astype(np.float32)
    top = lattice[y0][:, x0] * (1 - x) + lattice[y0][:, x0 + 1] * x
    bottom = lattice[y0 + 1][:, x0] * (1 - x) + lattice[y0 + 1][:, x0 + 1] * x
    return (top * (1 - y) + bottom * y).astype(np.float32)


def _nuclei(rng: np.random.Generator, shape: tuple[int, int], count: int) -> NDArray[np.float32]:
    """Ellipses of 3 to 8 px radius."""
    picture = np.zeros(shape, np.float32)
    for _ in range(count):
        radius, stretch, angle = rng.uniform(3, 8), rng.uniform(1, 1.8), rng.uniform(0, np.pi)
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        reach = int(radius * stretch) + 2
        y0, y1 = max(0, int(cy) - reach), min(shape[0], int(cy) + reach)
        x0, x1 = max(0, int(cx) - reach), min(shape[1], int(cx) + reach)
        y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        inside = (u / stretch) ** 2 + v**2 < radius**2
        picture[y0:y1, x0:x1][inside] = 1
    return picture


def centred_cosine(reference: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine between rows after the mean row of ``reference`` is taken off both: (N,).

    The plain cosine flatters, since all features of an encoder share a large common part.
    A row that equals the mean has no direction; it counts as 1 when both agree, else as 0.
    """
    mean = reference.astype(np.float64).mean(axis=0)
    a, b = reference - mean, found - mean
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    flat = norms < 1e-12
    product = np.divide((a * b).sum(axis=1), norms, out=np.zeros_like(norms), where=~flat)
    return np.where(flat, np.isclose(reference, found).all(axis=1).astype(float), product)
