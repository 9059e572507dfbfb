"""Tiles of one slide for several threads, and what becomes of tiles that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mhim.errors import MhimError
from mhim.slides import Mode, Slide, open_slide

UNREADABLE = (MhimError, OSError, ValueError)


@dataclass(frozen=True)
class SlideSource:
    """Which slide to open, see ``mhim.slides.open_slide``."""

    path: Path
    slide_id: str
    mpp0: float
    mpp0_source: str
    reader: str = "auto"

    def open(self) -> Slide:
        """The slide, at the scale that was settled when it was tiled.

        Raises:
            SlideError: missing or unreadable.
        """
        return open_slide(self.path, self.slide_id, self.mpp0, self.mpp0_source, self.reader, force_scale=True)


@dataclass(frozen=True)
class TileReader:
    """Tiles of an open slide.

    Attributes:
        slide: the slide.
        size_px: side of a tile in pixels at ``mpp``.
        mpp: micrometres per pixel wanted.
        mode: how tiles are brought to that scale.
        retries: further attempts on a tile that cannot be read.
    """

    slide: Slide
    size_px: int
    mpp: float
    mode: Mode
    retries: int = 1

    def read(self, xy_px0: NDArray[np.int64], out: NDArray[np.uint8]) -> dict[int, str]:
        """Fill ``out`` with tiles; what cannot be read, after further attempts, is named and set to zero.

        Args:
            xy_px0: (n, 2) corners in level-0 pixels.
            out: (n, size_px, size_px, 3) uint8 to fill.

        Returns:
            For each index that could not be read, why.
        """
        try:
            self.slide.read_many(xy_px0, self.size_px, self.mpp, out, self.mode)
        except UNREADABLE:
            reasons = {index: self._one(xy_px0[index], out[index]) for index in range(len(xy_px0))}
            return {index: reason for index, reason in reasons.items() if reason}
        return {}

    def _one(self, xy_px0: NDArray[np.int64], out: NDArray[np.uint8]) -> str:
        """Read one tile, several times if need be; why that failed, or nothing."""
        reason = ""
        for _ in range(1 + self.retries):
            try:
                self.slide.read_many(xy_px0[None], self.size_px, self.mpp, out[None], self.mode)
            except UNREADABLE as error:
                reason = str(error)
            else:
                return ""
        out[:] = 0
        return reason or "cannot be read"

    def close(self) -> None:
        """Release the slide; nobody may be reading."""
        self.slide.close()
