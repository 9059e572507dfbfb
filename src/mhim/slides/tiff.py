"""Slides in tiled TIFF, read directly: positional reads, libjpeg-turbo and OpenJPEG in the caller's threads."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.cohort import slide_name
from mhim.errors import SlideError
from mhim.slides.base import SlideBase, check_request
from mhim.slides.resample import (
    LEVEL_TOLERANCE,
    SAME_PX,
    SHIFT_TOLERANCE_PX,
    Mode,
    Source,
    resample_into,
    scale_between,
    source_side_px,
)
from mhim.slides.supply import Key, Lattice, Pixels, SeamStore, Supply
from mhim.slides.tiff_index import TiffIndex, read_index


class TiffSlide(SlideBase):
    """A tiled TIFF slide (SVS, generic, OME with SubIFDs), its stored tiles decoded without OpenSlide.

    Several threads may read at once. Pickling keeps the path and opens the file again on the other side.

    Args:
        path: slide file.
        mpp0: micrometres per level-0 pixel.
        mpp0_source: where it came from.
        slide_id: its name; by default the file name without suffix.
        index: its index, when it was read before.

    Raises:
        SlideError: missing file, or not a pyramid of RGB tiles.
    """

    reader = "tiff"
    reader_version = ", ".join(f"{name} {version(name)}" for name in ("tifffile", "simplejpeg", "imagecodecs"))

    def __init__(
        self, path: Path, mpp0: float, mpp0_source: str, slide_id: str | None = None, index: TiffIndex | None = None
    ) -> None:
        self.path = path
        self.slide_id = slide_id or slide_name(path)
        self.mpp0, self.mpp0_source = mpp0, mpp0_source
        self.levels = (index or read_index(path)).levels
        self.size_px0 = self.levels[0].size_px
        self.downsamples = tuple(sum(level.downsample) / 2 for level in self.levels)
        self._seams = SeamStore()
        self._fd: int | None = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def source_scale(self, mpp: float, mode: Mode) -> float:
        """Pixels of the level that is read, as it is decoded, per pixel at ``mpp``."""
        level, reduction = self._choose(mpp, mode)
        return scale_between(self.mpp0 * self.downsamples[level] * reduction, mpp)

    def source(self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode) -> Source:
        """The pixels under a region; white outside the slide.

        Raises:
            SlideError: a stored tile cannot be decoded.
        """
        plan = _Plan(self, [xy_px0], size_px, mpp, mode)
        pixels = np.empty((plan.size_px[1], plan.size_px[0], 3), np.uint8)
        plan.supply(self).gather(lambda _: pixels, lambda *_: None)
        return Source(pixels, plan.scale, plan.shifts[0])

    def read_many(
        self, xy_px0: NDArray[np.integer], size_px: int, mpp: float, out: NDArray[np.uint8], mode: Mode = "parity"
    ) -> None:
        """Fill ``out`` with square tiles, every stored tile decoded once; see ``mhim.slides.Slide``."""
        check_request(self.slide_id, xy_px0, size_px, out)
        keys = self._stored_keys(xy_px0, size_px, mpp, mode)
        if keys is not None:
            for key, tile in zip(keys, out, strict=True):
                self._decode(key, tile)
            return
        order = np.lexsort((xy_px0[:, 0], xy_px0[:, 1])).tolist()
        corners: list[tuple[int, int]] = [(x, y) for x, y in xy_px0[order].tolist()]
        plan = _Plan(self, corners, (size_px, size_px), mpp, mode)
        if plan.is_exact:
            plan.supply(self).scatter([out[i] for i in order])
            return
        region = np.empty((plan.size_px[1], plan.size_px[0], 3), np.uint8)

        def finish(index: int, pixels: Pixels) -> None:
            resample_into(Source(pixels, plan.scale, plan.shifts[index]), out[order[index]], mode)

        plan.supply(self).gather(lambda _: region, finish)

    def read_stored(self, level: int, index: int) -> Pixels:
        """A stored tile (h, w, 3) uint8 as it is, level by level in raster order.

        Raises:
            SlideError: it cannot be decoded.
        """
        columns = self.levels[level].columns
        return self._decode((level, 1, index // columns, index % columns), None)

    def lattice(self, level: int, reduction: int) -> Lattice:
        """How the stored tiles of a level lie when they are decoded at 1 / ``reduction`` of their size."""
        size, tile = self.levels[level].size_px, self.levels[level].tile_px
        return Lattice(
            level,
            reduction,
            (-(-size[0] // reduction), -(-size[1] // reduction)),
            (tile[0] // reduction, tile[1] // reduction),
        )

    def close(self) -> None:
        """Release the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _choose(self, mpp: float, mode: Mode) -> tuple[int, int]:
        """Level and reduction to read for ``mpp``: the coarsest fine enough, and of equals the least reduced."""
        choices = [
            (self.mpp0 * self.downsamples[index] * reduction, reduction, index)
            for index, level in enumerate(self.levels)
            for reduction in (level.decoder.reductions if mode == "fast" else (1,))
            if level.tile_px[0] % reduction == 0 and level.tile_px[1] % reduction == 0
        ]
        fine_enough = [choice for choice in choices if choice[0] <= mpp * (1 + LEVEL_TOLERANCE)]
        if not fine_enough:
            return 0, 1
        coarsest = max(fine_enough)[0]
        _, reduction, index = min(
            (choice for choice in fine_enough if choice[0] >= coarsest * (1 - LEVEL_TOLERANCE)),
            key=lambda choice: choice[1],
        )
        return index, reduction

    def _stored_keys(self, xy_px0: NDArray[np.integer], size_px: int, mpp: float, mode: Mode) -> list[Key] | None:
        """The stored tiles that are wanted, whole and as they are; None where anything else is wanted."""
        level, reduction = self._choose(mpp, mode)
        lattice = self.lattice(level, reduction)
        is_scaled = abs(self.source_scale(mpp, mode) - 1) * size_px >= SAME_PX
        if is_scaled or lattice.tile_px != (size_px, size_px):
            return None
        places = xy_px0 / (size_px * reduction * np.array(self.levels[level].downsample))
        whole = np.rint(places)
        is_off = np.abs(places - whole).max(initial=0) * size_px > SHIFT_TOLERANCE_PX
        if is_off or (whole < 0).any() or ((whole + 1) * size_px > lattice.size_px).any():
            return None
        return [(level, reduction, row, column) for column, row in whole.astype(np.int64).tolist()]

    def _decode(self, key: Key, into: Pixels | None) -> Pixels:
        level, reduction, row, column = key
        found = self.levels[level]
        index = row * found.columns + column
        if into is None:
            into = np.empty((found.tile_px[1] // reduction, found.tile_px[0] // reduction, 3), np.uint8)
        offset, count = int(found.offsets[index]), int(found.counts[index])
        if not count:
            into[...] = 255
            return into
        try:
            data = self._pread(count, offset)
            if len(data) != count:
                raise ValueError("the file ends before it")
            found.decoder(data, index, reduction, into)
        except (ValueError, OSError) as error:
            x, y = (
                round(place * tile * ratio)
                for place, tile, ratio in zip((column, row), found.tile_px, found.downsample, strict=True)
            )
            raise SlideError(
                f"{self.path}: cannot read the stored tile at x {x}, y {y} (level 0) of level {level}: {error}"
            ) from None
        return into

    def _pread(self, count: int, offset: int) -> bytes:
        if self._fd is None:
            raise ValueError("the slide is closed")
        return os.pread(self._fd, count, offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.mpp0, self.mpp0_source, self.slide_id)


class _Plan:
    """Where the wanted regions lie on the level that is read."""

    def __init__(
        self, slide: TiffSlide, xy_px0: list[tuple[int, int]], size_px: tuple[int, int], mpp: float, mode: Mode
    ) -> None:
        level, reduction = slide._choose(mpp, mode)
        self.lattice = slide.lattice(level, reduction)
        self.scale = slide.source_scale(mpp, mode)
        if abs(self.scale - 1) * max(size_px) < SAME_PX:
            self.scale = 1.0
        factor = np.array(slide.levels[level].downsample) * reduction
        exact = np.asarray(xy_px0, np.float64) / factor
        corners = np.floor(exact + SHIFT_TOLERANCE_PX)
        shifts = np.where(exact - corners > SHIFT_TOLERANCE_PX, exact - corners, 0.0)
        self.corners: list[tuple[int, int]] = [(x, y) for x, y in corners.astype(np.int64).tolist()]
        self.shifts: list[tuple[float, float]] = [(x, y) for x, y in shifts.tolist()]
        most = shifts.max(axis=0, initial=0.0)
        self.size_px = (
            source_side_px(size_px[0], self.scale, most[0]),
            source_side_px(size_px[1], self.scale, most[1]),
        )
        self.is_exact = not shifts.any() and self.scale == 1 and self.size_px == size_px

    def supply(self, slide: TiffSlide) -> Supply:
        """What fills the regions."""
        return Supply(self.corners, self.size_px, self.lattice, slide._decode, slide._seams)
