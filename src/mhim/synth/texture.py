"""Texture fields that all slides of a cohort share: fibres, grain, scanner noise. Each repeats without a seam."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

TEXTURE_UM = 0.5
"""Cell of the fibre and grain fields [um]."""
_SIDE = 1024


@dataclass(frozen=True)
class Textures:
    """Seamless fields.

    Attributes:
        fibres: uint8 (1024, 1024), eosin of fibrous stroma at ``TEXTURE_UM``; the fibres run along the rows.
        grain: uint8 (1024, 1024), structureless mottle around 128 at ``TEXTURE_UM``.
        noise: uint8 (1024, 1024, 3), noise and shading of a camera around 8, per pixel.
    """

    fibres: np.ndarray
    grain: np.ndarray
    noise: np.ndarray


@lru_cache(maxsize=2)
def make_textures(seed: int) -> Textures:
    """The fields of a cohort; a pure function of the seed, kept because every slide needs it."""
    rng = np.random.default_rng([seed, 11])
    return Textures(_fibres(rng), _grain(rng), _noise(rng))


def _fibres(rng: np.random.Generator) -> np.ndarray:
    bundles = _filtered(rng, 60, 5.0)
    strands = _filtered(rng, 22, 1.6)
    fibrils = _filtered(rng, 7, 0.6)
    patches = _filtered(rng, 24, 16)
    gaps = _filtered(rng, 26, 2.0) + 0.5 * _filtered(rng, 9, 1.0) + 0.25 * _filtered(rng, 3, 0.6)
    eosin = 0.46 + 0.065 * bundles + 0.06 * strands + 0.06 * fibrils + 0.05 * patches
    gap = 1 / (1 + np.exp(-(gaps - 1.5 + 0.55 * patches) * 4.5))
    return np.clip(eosin * (1 - 0.85 * gap) * 255, 0, 255).astype(np.uint8)


def _grain(rng: np.random.Generator) -> np.ndarray:
    mottle = 0.6 * _filtered(rng, 3.0, 3.0) + 0.5 * _filtered(rng, 1.0, 1.0) + 0.45 * _filtered(rng, 9.0, 9.0)
    return np.clip(128 + 26 * mottle, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator) -> np.ndarray:
    grey = rng.normal(scale=1.1, size=(_SIDE, _SIDE, 1)) + rng.normal(scale=0.9, size=(_SIDE, _SIDE, 3))
    swath = 1.2 * np.cos(np.linspace(0, 2 * np.pi, _SIDE, endpoint=False))
    return np.clip(8 + grey + swath[None, :, None], 0, 16).round().astype(np.uint8)


def _filtered(rng: np.random.Generator, along_um: float, across_um: float) -> np.ndarray:
    """White noise blurred by an anisotropic Gaussian on the torus; standard deviation 1."""
    frequency = np.fft.fftfreq(_SIDE, d=TEXTURE_UM)
    decay = -2 * np.pi**2
    transfer = np.exp(
        decay * ((across_um * frequency[:, None]) ** 2 + (along_um * np.fft.rfftfreq(_SIDE, TEXTURE_UM)) ** 2)
    )
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((_SIDE, _SIDE))) * transfer, s=(_SIDE, _SIDE))
    return (field - field.mean()) / field.std()
