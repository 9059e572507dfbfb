"""Nuclei: what kinds there are, and pre-rendered stamps of each at a scanner's scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

N_ANGLES = 16
COUNTS_PER_UNIT = 160
"""Counts of an 8-bit stain plane per unit of optical density."""


@dataclass(frozen=True)
class Nucleus:
    """A kind of nucleus.

    Attributes:
        length_um, width_um: typical axes.
        spread: standard deviation of log size.
        stain: haematoxylin, in optical density at its peak wavelength.
        stain_spread: standard deviation of log stain.
        wobble: irregularity of the outline.
        chromatin: contrast of the texture inside, 0 = smooth.
        nucleoli: most nucleoli.
    """

    length_um: float
    width_um: float
    spread: float
    stain: float
    stain_spread: float
    wobble: float = 0.05
    chromatin: float = 0.22
    nucleoli: int = 0


NUCLEI = {
    "spindle": Nucleus(14.0, 3.1, 0.18, 0.74, 0.16, wobble=0.06),
    "plump": Nucleus(9.2, 5.9, 0.15, 0.62, 0.16, nucleoli=1),
    "lymphocyte": Nucleus(6.6, 6.1, 0.08, 1.0, 0.10, wobble=0.03, chromatin=0.16),
    "epithelium": Nucleus(8.8, 6.0, 0.12, 0.70, 0.13, nucleoli=1),
    "crushed": Nucleus(24.0, 2.8, 0.35, 1.0, 0.20, wobble=0.15),
    "subtle": Nucleus(10.4, 7.3, 0.20, 0.74, 0.18, wobble=0.08, chromatin=0.28, nucleoli=1),
    "salient": Nucleus(13.4, 10.0, 0.24, 0.86, 0.20, wobble=0.12, chromatin=0.36, nucleoli=2),
}


@lru_cache(maxsize=8)
def make_stamps(seed: int, mpp: float) -> dict[str, list[list[np.ndarray]]]:
    """Haematoxylin stamps, uint8 (h, w), of each kind by direction (``N_ANGLES`` over half a turn) and variant.

    A pure function of its arguments, kept because every slide needs it.
    """
    stamps = {}
    for number, (name, nucleus) in enumerate(NUCLEI.items()):
        rng = np.random.default_rng([seed, 13, number])
        n_variants = 12 if name == "salient" else 8
        stamps[name] = [
            [_stamp(rng, nucleus, np.pi * turn / N_ANGLES, mpp) for _ in range(n_variants)] for turn in range(N_ANGLES)
        ]
    return stamps


def _stamp(rng: np.random.Generator, nucleus: Nucleus, angle: float, mpp: float) -> np.ndarray:
    """One nucleus: soft edge, darker rim, coarse chromatin, nucleoli."""
    size = np.exp(rng.normal(scale=nucleus.spread))
    half_length = nucleus.length_um * size * np.exp(rng.normal(scale=0.08)) / 2
    half_width = nucleus.width_um * size * np.exp(rng.normal(scale=0.08)) / 2
    n = int(np.ceil((half_length * 1.35 + 1) / mpp)) * 2 + 1
    y, x = (np.mgrid[0:n, 0:n] - (n - 1) / 2 + rng.uniform(-0.5, 0.5, (2, 1, 1))) * mpp
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius, theta = np.hypot(along / half_length, across / half_width), np.arctan2(across, along)
    outline = 1.0
    for order in (2, 3, 4, 5):
        outline = outline + nucleus.wobble * rng.normal(scale=0.6) * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    depth_um = (outline - radius) * half_width
    inside = 1 / (1 + np.exp(-depth_um / 0.30))
    rim = np.exp(-(((depth_um - 0.6) / 0.6) ** 2))
    texture = _chromatin(rng, n, mpp) * nucleus.chromatin + 0.22 * rim
    for _ in range(int(rng.integers(0, nucleus.nucleoli + 1))):
        spot = rng.normal(scale=0.3, size=2) * half_width
        texture = texture + 0.45 * np.exp(-((along - spot[0]) ** 2 + (across - spot[1]) ** 2) / 0.9**2)
    stain = nucleus.stain * np.exp(rng.normal(scale=nucleus.stain_spread))
    return np.clip(inside * stain * (0.88 + texture) * COUNTS_PER_UNIT, 0, 255).astype(np.uint8)


def _chromatin(rng: np.random.Generator, n: int, mpp: float) -> np.ndarray:
    """Clumps of about 1.5 um over a few larger ones, float64 (n, n), standard deviation about 1."""
    white = rng.standard_normal((2, n, n))
    clumps, masses = (
        cv2.GaussianBlur(part, (0, 0), um / mpp) * 3.5 * um / mpp for part, um in zip(white, (0.5, 1.2), strict=True)
    )
    return 0.7 * clumps + 0.5 * masses
