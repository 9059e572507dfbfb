"""A slide held in memory: the public test double, and the way in for plain images."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mhim.errors import SlideError
from mhim.slides.base import SlideBase
from mhim.slides.resample import WHITE, Mode, resample


class ArraySlide(SlideBase):
    """A slide whose level-0 pixels are an array; it reads exactly like a slide file.

    Args:
        pixels: (h, w, 3) uint8 RGB at level 0.
        mpp0: micrometres per level-0 pixel.
        slide_id: its name.
        mpp0_source: what to record as the source of ``mpp0``.

    Raises:
        SlideError: not (h, w, 3) uint8, empty, or ``mpp0`` not positive.
    """

    reader = "array"
    reader_version = version("pillow")

    def __init__(self, pixels: NDArray[Any], mpp0: float, slide_id: str = "array", mpp0_source: str = "option") -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
            raise SlideError(f"{slide_id}: pixels are {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 3)")
        if not mpp0 > 0:
            raise SlideError(f"{slide_id}: mpp is {mpp0:g}, expected a positive number")
        self.pixels = pixels
        self.mpp0 = float(mpp0)
        self.mpp0_source = mpp0_source
        self.slide_id = slide_id
        self.size_px0 = (pixels.shape[1], pixels.shape[0])

    def read(
        self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode = "fast"
    ) -> NDArray[np.uint8]:
        """RGB region (h, w, 3) uint8 of ``size_px`` (w, h) at ``mpp``; white outside the array."""
        scale = mpp / self.mpp0
        (x, y), (width, height) = xy_px0, self.size_px0
        region_px0 = (math.ceil(size_px[0] * scale), math.ceil(size_px[1] * scale))
        canvas = np.full((region_px0[1], region_px0[0], 3), WHITE, dtype=np.uint8)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + region_px0[0], width), min(y + region_px0[1], height)
        if right > left and bottom > top:
            canvas[top - y : bottom - y, left - x : right - x] = self.pixels[top:bottom, left:right]
        return resample(Image.fromarray(canvas), size_px, scale, mode)
