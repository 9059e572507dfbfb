"""What every slide shares: reading by way of source pixels, the thumbnail, the context manager."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mhim.errors import SlideError
from mhim.slides.resample import Mode, Source, resample, resample_into, thumbnail_plan

MAX_READ_PX = 1 << 25


class SlideBase:
    """Base of the readers: they say which pixels cover a region, and may replace ``read_many`` by a faster one.

    Attributes:
        slide_id, size_px0, mpp0, mpp0_source, reader, reader_version: see ``mhim.slides.Slide``.
        notes: what a user should know about how this slide is read, a line each.
    """

    slide_id: str
    size_px0: tuple[int, int]
    mpp0: float
    mpp0_source: str
    reader: str
    reader_version: str
    notes: tuple[str, ...] = ()

    def source_scale(self, mpp: float, mode: Mode) -> float:
        """Source pixels per wanted pixel at ``mpp``, on the level that would be read."""
        raise NotImplementedError

    def source(self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode) -> Source:
        """The pixels that cover a region of ``size_px`` (w, h) at ``mpp``; white outside the slide.

        Raises:
            SlideError: the region cannot be decoded.
        """
        raise NotImplementedError

    def read(
        self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode = "fast"
    ) -> NDArray[np.uint8]:
        """RGB region (h, w, 3) uint8 of ``size_px`` (w, h) at ``mpp`` whose corner is at ``xy_px0``.

        Very large regions are read in parts, so that memory stays bounded on slides without a pyramid.

        Raises:
            SlideError: the region cannot be decoded.
        """
        if math.prod(size_px) * self.source_scale(mpp, mode) ** 2 > MAX_READ_PX and max(size_px) > 1:
            return self._read_halves(xy_px0, size_px, mpp, mode)
        return resample(self.source(xy_px0, size_px, mpp, mode), size_px, mode)

    def read_many(
        self, xy_px0: NDArray[np.integer], size_px: int, mpp: float, out: NDArray[np.uint8], mode: Mode = "parity"
    ) -> None:
        """Fill ``out`` with square tiles, see ``mhim.slides.Slide``: here one after the other."""
        check_request(self.slide_id, xy_px0, size_px, out)
        for index, (x, y) in enumerate(xy_px0.tolist()):
            resample_into(self.source((x, y), (size_px, size_px), mpp, mode), out[index], mode)

    def thumbnail(self, max_side_px: int) -> NDArray[np.uint8]:
        """The whole slide (h, w, 3) uint8, its longer side at most ``max_side_px``."""
        size_px, mpp = thumbnail_plan(self.size_px0, self.mpp0, max_side_px)
        return self.read((0, 0), size_px, mpp)

    def close(self) -> None:
        """Release the file; by default there is nothing to release."""

    def _read_halves(
        self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode
    ) -> NDArray[np.uint8]:
        axis = 0 if size_px[0] >= size_px[1] else 1
        first, second, corner = list(size_px), list(size_px), list(xy_px0)
        first[axis] = size_px[axis] // 2
        second[axis] -= first[axis]
        corner[axis] += round(first[axis] * mpp / self.mpp0)
        parts = [
            self.read(xy_px0, (first[0], first[1]), mpp, mode),
            self.read((corner[0], corner[1]), (second[0], second[1]), mpp, mode),
        ]
        return np.concatenate(parts, axis=1 - axis)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_request(name: str, xy_px0: NDArray[np.integer], size_px: int, out: NDArray[np.uint8]) -> None:
    """Refuse corners and an output that do not belong together.

    Raises:
        SlideError: ``xy_px0`` is not (n, 2) integers, or ``out`` not (n, size_px, size_px, 3) uint8, C-contiguous.
    """
    if xy_px0.ndim != 2 or xy_px0.shape[1] != 2 or xy_px0.dtype.kind not in "iu":
        raise SlideError(f"{name}: corners are {xy_px0.dtype} {xy_px0.shape}, expected integers (n, 2)")
    wanted = (len(xy_px0), size_px, size_px, 3)
    if out.shape != wanted or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise SlideError(f"{name}: tiles go to {out.dtype} {out.shape}, expected contiguous uint8 {wanted}")
