"""How pixels are resampled, shared by every slide: always antialiased, on an exact fractional box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mode = Literal["parity", "fast"]
"""How tiles are brought to the wanted scale: ``parity`` is antialiased bicubic, equal to Pillow's within 2 of 255;
``fast`` is antialiased bilinear, and JPEG tiles may be decoded at 1/2, 1/4 or 1/8 of their size."""

FILTERS = {"parity": Image.Resampling.BICUBIC, "fast": Image.Resampling.BILINEAR}
TRANSFORMS: dict[Mode, str] = {
    "parity": "finest level not finer than needed, antialiased bicubic, white outside",
    "fast": "finest level not finer than needed, JPEG decoded at 1/2 to 1/8, antialiased bilinear, white outside",
}
"""What a file records of a mode."""

LEVEL_TOLERANCE = 0.01
SHIFT_TOLERANCE_PX = 0.02
SAME_SCALE = 1e-6
SAME_PX = 0.1
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Source:
    """Pixels that cover a wanted region, before they are resampled.

    Attributes:
        pixels: (h, w, 3) uint8 of one level.
        scale: source pixels per wanted pixel.
        shift_px: (x, y) of the region's corner inside the corner pixel of ``pixels``, each in [0, 1).
    """

    pixels: NDArray[np.uint8]
    scale: float
    shift_px: tuple[float, float] = (0.0, 0.0)


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


def scale_between(level_mpp: float, mpp: float) -> float:
    """Pixels of a level per pixel at ``mpp``; exactly 1 where they differ by no more than rounding."""
    scale = mpp / level_mpp
    return 1.0 if abs(scale - 1) < SAME_SCALE else scale


def source_side_px(size_px: int, scale: float, shift_px: float = 0.0) -> int:
    """Source pixels to read along one axis for ``size_px`` wanted ones.

    One more than they span where that would be ``size_px`` at another scale than 1: torch takes equal sizes for
    nothing to do.
    """
    side = int(np.ceil(shift_px + size_px * scale - 1e-6))
    return side + 1 if side == size_px and scale != 1 else side


def is_exact(source: Source, size_px: tuple[int, int]) -> bool:
    """Whether the source already is what is wanted, pixel for pixel."""
    height, width = source.pixels.shape[:2]
    return source.scale == 1 and source.shift_px == (0.0, 0.0) and (width, height) == size_px


def resample(source: Source, size_px: tuple[int, int], mode: Mode = "fast") -> NDArray[np.uint8]:
    """A region at ``size_px`` (w, h), by Pillow: (h, w, 3) uint8; the source's own pixels where they are exact."""
    if is_exact(source, size_px):
        return source.pixels
    height, width = source.pixels.shape[:2]
    x, y = source.shift_px
    box = (x, y, min(x + size_px[0] * source.scale, width), min(y + size_px[1] * source.scale, height))
    return np.array(Image.fromarray(source.pixels).resize(size_px, FILTERS[mode], box=box))


def resample_into(source: Source, out: NDArray[np.uint8], mode: Mode) -> None:
    """The same into ``out`` (h, w, 3) uint8, C-contiguous, within 2 of 255 of ``resample`` and many times faster.

    The antialiased filters of torch take Pillow's way for bytes, but know no fractional corner; where there is
    one, and the scale is (within 1.5 %) 1 in the fast mode, pixels are interpolated; else Pillow works.
    """
    height, width = out.shape[:2]
    if is_exact(source, (width, height)):
        out[...] = source.pixels
    elif mode == "fast" and abs(source.scale - 1) <= 1.5 * LEVEL_TOLERANCE:
        _interpolate_into(source, out)
    elif source.shift_px == (0.0, 0.0):
        _antialias_into(source, out, mode)
    else:
        out[...] = resample(source, (width, height), mode)


def _antialias_into(source: Source, out: NDArray[np.uint8], mode: Mode) -> None:
    import torch

    aten = torch.ops.aten
    filter_out = aten._upsample_bicubic2d_aa.out if mode == "parity" else aten._upsample_bilinear2d_aa.out
    pixels, wanted = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (source.pixels, out))
    factor = 1 / source.scale
    filter_out(pixels, list(out.shape[:2]), False, factor, factor, out=wanted)


def _interpolate_into(source: Source, out: NDArray[np.uint8]) -> None:
    import cv2

    (x, y), scale = source.shift_px, source.scale
    height, width = out.shape[:2]
    if scale == 1:  # a mere shift: the mean of neighbours, one axis after the other
        pixels = source.pixels
        if x:
            pixels = cv2.addWeighted(pixels[:, :width], 1 - x, pixels[:, 1 : width + 1], x, 0)
        if y:
            pixels = cv2.addWeighted(pixels[:height], 1 - y, pixels[1 : height + 1], y, 0)
        out[...] = pixels[:height, :width]
        return
    half = 0.5 * scale - 0.5
    place = np.array([[scale, 0, x + half], [0, scale, y + half]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(source.pixels, place, (width, height), out, flags, cv2.BORDER_REPLICATE)


def thumbnail_plan(size_px0: tuple[int, int], mpp0: float, max_side_px: int) -> tuple[tuple[int, int], float]:
    """Size (w, h) and mpp of a picture of the whole slide whose longer side is at most ``max_side_px``.

    >>> thumbnail_plan((4000, 2000), 0.25, 1000)
    ((1000, 500), 1.0)
    """
    scale = max(1.0, max(size_px0) / max_side_px)
    width, height = (max(1, round(side / scale)) for side in size_px0)
    return (width, height), mpp0 * scale
