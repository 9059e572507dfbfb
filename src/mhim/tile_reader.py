"""What a reading worker does: open a slide once, read tiles. Imports no torch, so that workers start fast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mhim.slides import Slide, open_slide


@dataclass(frozen=True)
class SlideSource:
    """Which slide to open, see ``mhim.slides.open_slide``."""

    path: Path
    slide_id: str
    mpp0: float
    mpp0_source: str


@dataclass(frozen=True)
class ReadJob:
    """Some tiles of one slide.

    Attributes:
        source: the slide.
        xy_px0: (n, 2) int64 corners in level-0 pixels.
        size_px: side of a tile in pixels at ``mpp``.
        mpp: micrometres per pixel wanted.
    """

    source: SlideSource
    xy_px0: NDArray[np.int64]
    size_px: int
    mpp: float


def read_tiles(job: ReadJob) -> NDArray[np.uint8]:
    """The tiles of a job in its order, (n, size_px, size_px, 3) uint8 RGB.

    Raises:
        SlideError: the slide cannot be opened, or a tile cannot be decoded (its position is named).
    """
    slide = _slide(job.source)
    size_px = (job.size_px, job.size_px)
    return np.stack([slide.read((x, y), size_px, job.mpp) for x, y in job.xy_px0.tolist()])


def forget_slide() -> None:
    """Let go of the slide that this process keeps open."""
    _slide.cache_clear()


@lru_cache(maxsize=1)
def _slide(source: SlideSource) -> Slide:
    return open_slide(source.path, source.slide_id, source.mpp0, source.mpp0_source)
