"""Colour and texture statistics: an encoder without weights, for tests, demonstrations and baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.config import ComponentConfig
from mhim.encoders.contract import Encoder, encoders

# Optical density of haematoxylin, eosin and a residual orthogonal to both (Ruifrok and Johnston, 2001).
_HAEMATOXYLIN, _EOSIN = np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105])
_STAINS = np.stack([_HAEMATOXYLIN, _EOSIN, np.cross(_HAEMATOXYLIN, _EOSIN)])
UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).astype(np.float32)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCALES = (1, 2, 4)
LBP_SCALES = (1, 2)
LBP_MARGIN = 0.02
LBP_BINS = 10
WHITE_LEVEL = 220
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))

Floats = NDArray[np.float32]


@encoders.register("colour")
class ColourEncoder(Encoder):
    """Stain, colour, gradient and local-binary-pattern statistics of a tile; no weights, CPU only.

    In order: per stain (haematoxylin, eosin) mean, deviation and five quantiles of the optical density;
    mean and deviation of the residual; their correlation; mean and deviation of red, green and blue;
    share of near-white pixels; per stain and scale mean and deviation of the gradient; per scale the
    histogram of rotation-invariant uniform patterns of haematoxylin.
    """

    class Config(ComponentConfig):
        """No options."""

    dim = 2 * (2 + len(QUANTILES)) + 2 + 1 + 6 + 1 + 2 * 2 * len(SCALES) + LBP_BINS * len(LBP_SCALES)
    tile_px = 128
    transform = "optical density, Ruifrok-Johnston unmixing"
    backend = "numpy"

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 RGB, sides of at least 16 px -> (B, dim) float32."""
        stains = optical_density(tiles) @ UNMIX
        haematoxylin, eosin, residual = (np.ascontiguousarray(stains[..., index]) for index in range(3))
        parts = [
            _distribution(haematoxylin),
            _distribution(eosin),
            _mean_std(residual),
            _correlation(haematoxylin, eosin),
            _mean_std(tiles[..., 0] / np.float32(255)),
            _mean_std(tiles[..., 1] / np.float32(255)),
            _mean_std(tiles[..., 2] / np.float32(255)),
            (tiles.min(axis=3) >= WHITE_LEVEL).mean(axis=(1, 2))[:, None],
        ]
        parts += [_mean_std(_gradient(_shrink(stain, scale))) for stain in (haematoxylin, eosin) for scale in SCALES]
        parts += [pattern_histogram(_shrink(haematoxylin, scale)) for scale in LBP_SCALES]
        return np.concatenate(parts, axis=1, dtype=np.float32)


def optical_density(tiles: NDArray[np.uint8]) -> Floats:
    """-log10 of transmitted light, (..., 3) float32; 0 for white."""
    table = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    return table.astype(np.float32)[tiles]


def pattern_histogram(images: Floats) -> Floats:
    """Shares of the rotation-invariant uniform local binary patterns (Ojala et al., 2002).

    Args:
        images: (B, h, w).

    Returns:
        (B, 10), rows sum to 1: patterns with 0 to 8 brighter neighbours in one arc, then all others.
    """
    height, width = images.shape[1] - 2, images.shape[2] - 2
    centre = images[:, 1:-1, 1:-1] + LBP_MARGIN
    bits = [images[:, y : y + height, x : x + width] > centre for y, x in _NEIGHBOURS]
    ones = sum((bit.astype(np.int8) for bit in bits), np.zeros(centre.shape, np.int8))
    turns = sum((a != b for a, b in zip(bits, bits[1:] + bits[:1], strict=True)), np.zeros(centre.shape, np.int8))
    codes = np.where(turns <= 2, ones, LBP_BINS - 1)
    shares = [(codes == code).mean(axis=(1, 2)) for code in range(LBP_BINS)]
    return np.stack(shares, axis=1).astype(np.float32)


def _mean_std(images: NDArray[Any]) -> Floats:
    return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


def _distribution(images: Floats) -> Floats:
    quantiles = np.quantile(images.reshape(len(images), -1), QUANTILES, axis=1).T
    return np.concatenate([_mean_std(images), quantiles], axis=1)


def _correlation(first: Floats, second: Floats) -> Floats:
    """Pearson correlation over pixels, (B, 1); 0 where one of the two is flat."""
    a, b = (image.reshape(len(image), -1) for image in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    product = (a * b).mean(axis=1)
    spread = a.std(axis=1) * b.std(axis=1)
    return np.divide(product, spread, out=np.zeros_like(product), where=spread > 1e-9)[:, None]


def _shrink(images: Floats, factor: int) -> Floats:
    """Block means of ``factor`` x ``factor`` pixels; a remainder at the edge is dropped."""
    if factor == 1:
        return images
    count, height, width = images.shape[0], images.shape[1] // factor, images.shape[2] // factor
    cut = images[:, : height * factor, : width * factor]
    return cut.reshape(count, height, factor, width, factor).mean(axis=(2, 4))


def _gradient(images: Floats) -> Floats:
    """Length of the central-difference gradient, (B, h - 2, w - 2)."""
    dx = (images[:, 1:-1, 2:] - images[:, 1:-1, :-2]) / 2
    dy = (images[:, 2:, 1:-1] - images[:, :-2, 1:-1]) / 2
    return np.hypot(dx, dy)
