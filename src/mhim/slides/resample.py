"""How pixels are resampled, shared by every slide: always antialiased, on an exact fractional box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mode = Literal["parity", "fast"]
"""How tiles are brought to the wanted scale: ``parity`` is antialiased bicubic, equal to Pillow's within 2 of 255;
``fast`` is antialiased bilinear, and JPEG tiles may be decoded at 1/2, 1/4 or 1/8 of their size."""

FILTERS = {"parity": Image.Resampling.BICUBIC, "fast": Image.Resampling.BILINEAR}
TRANSFORM = "finest level not finer than needed, antialiased bilinear (Pillow), white outside"
LEVEL_TOLERANCE = 0.01
WHITE = (255, 255, 255)


def best_level(level_mpps: Sequence[float], mpp: float) -> int:
    """Index of the coarsest level that is still fine enough for ``mpp``, 1 % tolerated; else the finest.

    >>> best_level([0.25, 0.5, 2.0], 1.0)
    1
    >>> best_level([0.25, 0.5, 2.0], 0.499)
    1
    >>> best_level([0.25, 0.5, 2.0], 0.1)
    0
    """
    fine_enough = [index for index, value in enumerate(level_mpps) if value <= mpp * (1 + LEVEL_TOLERANCE)]
    return max(fine_enough, key=lambda index: level_mpps[index]) if fine_enough else int(np.argmin(level_mpps))


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image composited on white, as RGB."""
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def resample(image: Image.Image, size_px: tuple[int, int], scale: float, mode: Mode = "fast") -> NDArray[np.uint8]:
    """The part of ``image`` that starts at its corner and spans ``size_px * scale``, shown at ``size_px``.

    Args:
        image: RGB source, at least ``size_px * scale`` large.
        size_px: (width, height) wanted.
        scale: source pixels per wanted pixel.
        mode: which filter.

    Returns:
        (h, w, 3) uint8; the source pixels untouched when ``scale`` is 1.
    """
    if scale == 1 and image.size == size_px:
        return np.array(image)
    box = (0.0, 0.0, min(size_px[0] * scale, image.width), min(size_px[1] * scale, image.height))
    return np.array(image.resize(size_px, FILTERS[mode], box=box))


def thumbnail_plan(size_px0: tuple[int, int], mpp0: float, max_side_px: int) -> tuple[tuple[int, int], float]:
    """Size (w, h) and mpp of a picture of the whole slide whose longer side is at most ``max_side_px``.

    >>> thumbnail_plan((4000, 2000), 0.25, 1000)
    ((1000, 500), 1.0)
    """
    scale = max(1.0, max(size_px0) / max_side_px)
    width, height = (max(1, round(side / scale)) for side in size_px0)
    return (width, height), mpp0 * scale
