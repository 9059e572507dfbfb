"""Open, read, encode and write, all at once: slides and batches in order, bounded memory.

::

    opener thread -> slides -> feeder -> reading threads -> batches -> this thread: encoder -> writer thread

Two slides wait open, a fixed number of batch buffers goes round, and a few batches of features wait for the disk;
whoever is slowest holds up the others there. The encoder always sees full batches, filled up with black tiles at the
end, so that what is computed for a tile does not depend on how many others there are.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mhim.encode.batches import READ_TILES, Batch, Feeder, Part
from mhim.encode.config import EncodeConfig
from mhim.encode.jobs import EncodeJob, SlideEnd
from mhim.encode.work import SlideWork, open_work
from mhim.encoders import Encoder
from mhim.errors import FeatureError, MhimError
from mhim.heap import keep_pages

T = TypeVar("T")
SLIDES_AHEAD = 2
BATCHES_AHEAD = 4
Rows = tuple[SlideWork, NDArray[np.int64], NDArray[np.float32]]
"""Features (k, D) of some rows of a slide."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Pipeline:
    """Encodes slides.

    Args:
        encoder: the encoder.
        config: what is wanted.
        workers: threads that read tiles; 0 reads in the calling thread.
        on_end: called with each slide's end, from any thread.
        on_tiles: called with the number of tiles of each batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: EncodeConfig,
        workers: int,
        on_end: Callable[[SlideEnd], None],
        on_tiles: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.encoder, self.config, self.workers = encoder, config, workers
        self._on_end, self._on_tiles = on_end, on_tiles
        self._open: dict[str, SlideWork] = {}

    def run(self, jobs: Sequence[EncodeJob]) -> None:
        """Encode the slides of some jobs, in order; failures are reported as ends.

        Raises:
            ArtefactError: the disk is full; what is finished is kept.
            KeyboardInterrupt: likewise.
        """
        keep_pages()
        works = Ahead(self._works(jobs), SLIDES_AHEAD if self.workers else 0)
        buffers = 2 + max(1, -(-self.workers * READ_TILES // self.config.batch_size))
        feeder = Feeder(works, self.config.batch_size, buffers)
        writer = Writer(self._end)
        readers = [threading.Thread(target=_read, args=(feeder,), daemon=True) for _ in range(self.workers)]
        for reader in readers:
            reader.start()
        try:
            for batch in self._batches(feeder):
                self._encode(batch, writer)
                feeder.give_back(batch)
                if writer.fatal is not None:
                    raise writer.fatal
            writer.close()
            if writer.fatal is not None:
                raise writer.fatal
        finally:
            feeder.stop()
            works.close()
            for reader in readers:
                reader.join()
            writer.close()
            for work in list(self._open.values()):
                work.close()

    def _works(self, jobs: Iterable[EncodeJob]) -> Iterator[SlideWork]:
        """Open slides one after the other; those that are complete or cannot be opened end here."""
        for job in jobs:
            try:
                work = open_work(job, self.config, self.encoder)
            except Exception as error:  # reported as the slide's failure; a full disk stops the run
                if is_disk_full(error):
                    raise
                self._on_end(SlideEnd.failure(job.slide_id, error))
                continue
            if isinstance(work, SlideEnd):
                self._on_end(work)
                continue
            self._open[job.slide_id] = work
            yield work

    def _batches(self, feeder: Feeder) -> Iterator[Batch]:
        """Batches in order, each completely read."""
        while True:
            while not self.workers and feeder.sealed.empty():
                read = feeder.next_read()
                if read is not None:
                    read.run()
            batch = feeder.sealed.get()
            if batch is None:
                return
            if isinstance(batch, BaseException):
                raise batch
            batch.wait()
            yield batch

    def _encode(self, batch: Batch, writer: Writer) -> None:
        parts = [part for part in batch.parts if part.work.error is None]
        if parts:
            features = self._features(batch, parts)
            writer.put([(part.work, part.rows, features[part.places]) for part in parts], batch.ends)
            self._on_tiles(batch.count)
        else:
            writer.put([], batch.ends)

    def _features(self, batch: Batch, parts: list[Part]) -> NDArray[np.float32]:
        """Features (B, D) of a batch. Where the encoder fails, it is found out which slides it fails on."""
        try:
            return self._encoded(batch.tiles)
        except Exception as error:  # noqa: BLE001  (reported as the failure of the slides that it happens on)
            if len({id(part.work) for part in parts}) == 1:
                parts[0].work.fail(error)
                return np.zeros((batch.size, self.encoder.dim), dtype=np.float32)
        features = np.zeros((batch.size, self.encoder.dim), dtype=np.float32)
        for part in parts:
            tiles = np.zeros_like(batch.tiles)
            tiles[part.places] = batch.tiles[part.places]
            try:
                features[part.places] = self._encoded(tiles)[part.places]
            except Exception as error:  # noqa: BLE001  (reported as the failure of this slide)
                part.work.fail(error)
        return features

    def _encoded(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (B, D), in memory that the encoder does not use again."""
        features = np.array(self.encoder.encode(tiles), dtype=np.float32)
        if features.shape != (len(tiles), self.encoder.dim):
            expected = f"({len(tiles)}, {self.encoder.dim})"
            raise FeatureError(f"{self.encoder.name}: gave features of shape {features.shape}, expected {expected}")
        return features

    def _end(self, work: SlideWork) -> None:
        self._open.pop(work.job.slide_id, None)
        self._on_end(work.end())


class Writer:
    """A thread that gathers features into chunks, writes them, and finishes bags, in the order in which they come.

    Attributes:
        fatal: an error after which nothing more can be written, of any slide.
    """

    def __init__(self, end: Callable[[SlideWork], None]) -> None:
        self.fatal: BaseException | None = None
        self._end = end
        self._tasks: queue.Queue[tuple[list[Rows], list[SlideWork]] | None] = queue.Queue(BATCHES_AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, features: list[Rows], ends: list[SlideWork]) -> None:
        """Take the features of a batch, and the slides that end with it; waits while too many do."""
        self._tasks.put((features, ends))

    def close(self) -> None:
        """Wait until everything is written."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            works = [work for work, _, _ in task[0]] + task[1]
            for work, rows, features in task[0]:
                work.write(rows, features)
            for work in task[1]:
                try:
                    self._end(work)
                except Exception as error:  # noqa: BLE001  (raised where batches are handed over)
                    self.fatal = self.fatal or error
            full = [work.error for work in works if work.error is not None and is_disk_full(work.error)]
            self.fatal = self.fatal or next(iter(full), None)


class Ahead(Generic[T]):
    """An iterator whose next items are made in a thread, ``depth`` of them at most; 0 makes them when asked for."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._depth = items, depth
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(max(1, depth))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if depth:
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        if not self._depth:
            yield from self._items
            return
        while True:
            kind, item = self._queue.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Make no more items."""
        self._stopped.set()
        if self._depth:
            self._put("end", None, final=True)
            self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:  # noqa: BLE001  (raised again where the items are taken)
            self._put("error", error)

    def _put(self, kind: str, item: T | BaseException | None, final: bool = False) -> bool:
        """Add to the queue; False when nobody takes items any more."""
        while final or not self._stopped.is_set():
            try:
                self._queue.put((kind, item), timeout=0.05)
            except queue.Full:
                if final:
                    self._queue.get_nowait()
            else:
                return True
        return False


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that there is no space left."""
    cause = error.__cause__ if isinstance(error, MhimError) else error
    return isinstance(cause, OSError) and (cause.errno in _NO_SPACE or "No space left" in str(cause))


def _read(feeder: Feeder) -> None:
    while (read := feeder.next_read()) is not None:
        read.run()
