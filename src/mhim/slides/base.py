"""What every slide shares: tiles one by one, the thumbnail, the context manager."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mhim.errors import SlideError
from mhim.slides.resample import Mode, thumbnail_plan


class SlideBase:
    """Base of the readers: they give ``read`` and ``close``, and may replace ``read_many`` by a faster one."""

    slide_id: str
    size_px0: tuple[int, int]
    mpp0: float

    def read(
        self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode = "fast"
    ) -> NDArray[np.uint8]:
        """RGB region (h, w, 3) uint8, see ``mhim.slides.Slide``."""
        raise NotImplementedError

    def read_many(
        self, xy_px0: NDArray[np.integer], size_px: int, mpp: float, out: NDArray[np.uint8], mode: Mode = "parity"
    ) -> None:
        """Fill ``out`` with square tiles, see ``mhim.slides.Slide``: here one after the other."""
        check_request(self.slide_id, xy_px0, size_px, out)
        for index, (x, y) in enumerate(xy_px0.tolist()):
            out[index] = self.read((x, y), (size_px, size_px), mpp, mode)

    def thumbnail(self, max_side_px: int) -> NDArray[np.uint8]:
        """The whole slide (h, w, 3) uint8, its longer side at most ``max_side_px``."""
        size_px, mpp = thumbnail_plan(self.size_px0, self.mpp0, max_side_px)
        return self.read((0, 0), size_px, mpp)

    def close(self) -> None:
        """Release the file; by default there is nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_request(name: str, xy_px0: NDArray[np.integer], size_px: int, out: NDArray[np.uint8]) -> None:
    """Refuse corners and an output that do not belong together.

    Raises:
        SlideError: ``xy_px0`` is not (n, 2) integers, or ``out`` not (n, size_px, size_px, 3) uint8.
    """
    if xy_px0.ndim != 2 or xy_px0.shape[1] != 2 or xy_px0.dtype.kind not in "iu":
        raise SlideError(f"{name}: corners are {xy_px0.dtype} {xy_px0.shape}, expected integers (n, 2)")
    if out.shape != (len(xy_px0), size_px, size_px, 3) or out.dtype != np.uint8:
        wanted = (len(xy_px0), size_px, size_px, 3)
        raise SlideError(f"{name}: tiles go to {out.dtype} {out.shape}, expected uint8 {wanted}")
