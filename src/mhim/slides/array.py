"""A slide held in memory: the public test double, and the way in for plain images."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.errors import SlideError
from mhim.slides.base import SlideBase
from mhim.slides.resample import WHITE, Mode, Source, scale_between, source_side_px


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

    def source_scale(self, mpp: float, mode: Mode) -> float:
        """Level-0 pixels per pixel at ``mpp``."""
        return scale_between(self.mpp0, mpp)

    def source(self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode) -> Source:
        """The level-0 pixels under a region; white outside the array."""
        scale = self.source_scale(mpp, mode)
        (x, y), (width, height) = xy_px0, self.size_px0
        columns, rows = (source_side_px(side, scale) for side in size_px)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + columns, width), min(y + rows, height)
        canvas = np.empty((rows, columns, 3), dtype=np.uint8)
        if (right - left, bottom - top) != (columns, rows):
            canvas[...] = WHITE
        if right > left and bottom > top:
            canvas[top - y : bottom - y, left - x : right - x] = self.pixels[top:bottom, left:right]
        return Source(canvas, scale)
