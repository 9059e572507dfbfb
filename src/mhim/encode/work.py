"""One slide on its way from grid to bag."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mhim
from mhim.bag import ATTRIBUTES, Bag, check_features, read_attributes, to_storage
from mhim.batch import Outcome
from mhim.encode.config import EncodeConfig
from mhim.encode.jobs import EncodeJob, SlideEnd
from mhim.encoders import Encoder
from mhim.errors import ArtefactError, SlideError
from mhim.partial_bag import BagPlan, Chunk, PartialBag
from mhim.resume import is_complete
from mhim.slides import Slide
from mhim.tile_io import load_grid
from mhim.tile_reader import SlideSource, TileReader
from mhim.tiles import TileGrid

TRANSFORMS = {
    "parity": "finest level not finer than needed, antialiased bicubic, white outside",
    "fast": "finest level not finer than needed, antialiased bilinear or scaled JPEG decoding, white outside",
}


@dataclass
class SlideWork:
    """A slide that is being encoded: open for reading, its bag open for writing.

    The reading threads, the encoding thread and the writing thread share it; ``error`` is set once and
    from then on nothing more is done for the slide.
    """

    job: EncodeJob
    slide_path: Path
    reader: TileReader
    bag: PartialBag
    config: EncodeConfig
    name: str
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.error: BaseException | None = None
        self._worthless = self._unwritable = False
        self._lock = threading.Lock()
        self._unreadable: dict[int, str] = dict(self.bag.failed)
        self._deadline: float | None = None

    @property
    def size_px(self) -> int:
        """Side of a tile as the encoder sees it."""
        return self.reader.size_px

    def fail(self, error: BaseException, worthless: bool = False) -> None:
        """Give the slide up; what is computed is kept for the next run unless it is ``worthless``."""
        with self._lock:
            if self.error is None:
                self.error, self._worthless = error, worthless

    def write(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Take the features of the next rows, and write the chunks that become whole; failures end the slide.

        What was read before the slide was given up is still written.
        """
        if self._worthless or self._unwritable:
            return
        try:
            for chunk in self._collect(rows, features):
                self.bag.write(chunk)
        except Exception as error:  # noqa: BLE001  (reported as the slide's failure)
            self._unwritable = True
            self.fail(error)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the tiles of some rows; what cannot be read is noted. Never raises."""
        try:
            self._check_time()
            if self.error is not None:
                return
            failed = self.reader.read(self.bag.plan.xy_px0[rows], out)
            if failed:
                self._note_unreadable({int(rows[index]): reason for index, reason in failed.items()})
        except Exception as error:  # noqa: BLE001  (a slide that fails in a way nobody thought of must not stop the rest)
            self.fail(error)

    def end(self) -> SlideEnd:
        """Finish the bag, or leave what is whole for the next run; says what became of the slide."""
        if self.error is None:
            try:
                self.bag.finish()
            except Exception as error:  # noqa: BLE001  (reported as the slide's failure)
                self.error = error
        if self.error is not None and self._worthless:
            self.bag.discard()
        self.close()
        if self.error is not None:
            return SlideEnd.failure(self.job.slide_id, self.error)
        count, tiles = len(self.bag.failed), len(self.bag.plan)
        return SlideEnd(self.job.slide_id, Outcome.DONE, "", self.name, count, tiles, tuple(self.reader.slide.notes))

    def close(self) -> None:
        """Let go of slide and bag; what is whole stays for the next run."""
        self.reader.close()
        self.bag.close()

    def _collect(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> Iterator[Chunk]:
        """The whole chunks that these features complete. Features that cannot be stored end the slide."""
        failed = {row: self._unreadable[row] for row in rows.tolist() if row in self._unreadable}
        read = np.array([row not in failed for row in rows.tolist()])
        stored = np.zeros(features.shape, dtype=self.config.storage)
        try:
            if read.any():
                check_features(features[read], self.job.path)
                stored[read] = to_storage(features[read], self.config.storage, self.job.path)
        except Exception as error:  # noqa: BLE001  (reported as the slide's failure)
            self.fail(error, worthless=True)
            return
        yield from self.bag.put(rows, stored, failed)

    def _check_time(self) -> None:
        limit = self.config.max_seconds
        if limit is None:
            return
        with self._lock:
            now = monotonic()
            self._deadline = self._deadline or now + limit
            late = now > self._deadline
        if late:
            self.fail(
                SlideError(
                    f"{self.slide_path}: took longer than max_seconds={limit:g}; what is finished is kept, "
                    "run the same command again to go on, or with a larger --set max_seconds"
                )
            )

    def _note_unreadable(self, failed: dict[int, str]) -> None:
        with self._lock:
            self._unreadable |= failed
            count, total = len(self._unreadable), len(self.bag.plan)
            first = self._unreadable[min(self._unreadable)]
        if count > self.config.max_failed * total:
            self.fail(
                SlideError(
                    f"{self.slide_path}: {count} of {total} tiles cannot be read, more than "
                    f"max_failed={self.config.max_failed:g} allows; the first: {first}"
                ),
                worthless=True,
            )


def open_work(job: EncodeJob, config: EncodeConfig, encoder: Encoder) -> SlideWork | SlideEnd:
    """A slide ready to be encoded, or its end when it is complete already.

    Raises:
        SlideError: the slide is missing or has changed.
        ArtefactError: the output exists and was made by something else, or is being made by another process.
        FeatureError: the grid is missing or not complete.
    """
    marks = config.fingerprint(encoder), job.input_fingerprint()
    if is_complete(job.path, *marks, job.overwrite):
        said = read_attributes(job.path)
        reader, failed = _reader_name(said.get("reader"), said.get("reader_version")), int(said.get("failed_count", 0))
        return SlideEnd(job.slide_id, Outcome.SKIPPED, "", reader, failed, int(said.get("tile_count", 0)))
    grid = load_grid(job.grid_path)
    if not len(grid):
        raise ArtefactError(f"{job.grid_path}: a grid without tiles; run mhim tile again")
    source = SlideSource(
        Path(grid.attributes["slide_path"]),
        grid.slide_id,
        grid.attributes["slide_mpp"],
        grid.attributes["slide_mpp_source"],
        config.reader,
    )
    slide = source.open()
    try:
        _check_slide(slide, source, grid)
        attributes = _attributes(grid, slide, config, encoder, marks)
        frame = Bag(grid.slide_id, np.zeros((0, 0)), grid.xy_px0, attributes, grid.annotation_fraction)
        bag = PartialBag(job.path, BagPlan(frame, encoder.dim, config.storage))
    except BaseException:  # raised again; the slide must not stay open
        slide.close()
        raise
    size_px, mpp = int(grid.attributes["tile_size_px"]), float(grid.attributes["mpp"])
    reader = TileReader(slide, size_px, mpp, config.resample, config.retries)
    name = _reader_name(slide.reader, slide.reader_version)
    return SlideWork(job, source.path, reader, bag, config, name, bag.pending_rows())


def _reader_name(reader: object, reader_version: object) -> str:
    return "" if reader is None else f"{reader} {reader_version}"


def _attributes(
    grid: TileGrid, slide: Slide, config: EncodeConfig, encoder: Encoder, marks: tuple[str, str]
) -> dict[str, Any]:
    kept = {key: grid.attributes[key] for key in ATTRIBUTES if key in grid.attributes}
    return {
        **kept,
        **encoder.attributes(),
        "reader": slide.reader,
        "reader_version": slide.reader_version,
        "resample": config.resample,
        "transform": f"{TRANSFORMS[config.resample]}; then {encoder.transform}",
        "tile_count": len(grid),
        "failed_count": 0,
        "config_fingerprint": marks[0],
        "input_fingerprint": marks[1],
        "tool_version": mhim.__version__,
    }


def _check_slide(slide: Slide, source: SlideSource, grid: TileGrid) -> None:
    """See that a slide is still the one that was tiled."""
    size_px0 = (grid.attributes["level0_width"], grid.attributes["level0_height"])
    if slide.size_px0 != size_px0 or abs(slide.mpp0 / source.mpp0 - 1) > 1e-6:
        raise SlideError(f"{source.path}: not the slide that was tiled (its size or mpp changed); run mhim tile again")
