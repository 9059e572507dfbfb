"""Batches of tiles across slides: who reads what into which place, with a fixed number of buffers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mhim.encode.work import SlideWork

READ_TILES = 32
MAX_SLIDES_A_BATCH = 16


@dataclass(frozen=True)
class Part:
    """Consecutive places of a batch, from ``start``, and the rows of a slide that go there."""

    work: SlideWork
    rows: NDArray[np.int64]
    start: int

    @property
    def places(self) -> slice:
        """The places in the batch."""
        return slice(self.start, self.start + len(self.rows))


class Batch:
    """Tiles (B, s, s, 3) uint8 of one or more slides; always B of them for the encoder, the rest black.

    Attributes:
        tiles: the pixels.
        parts: what lies where.
        ends: slides that have no tile in any later batch.
        count: places that are taken.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.tiles: NDArray[np.uint8] = np.zeros((size, 0, 0, 3), dtype=np.uint8)
        self.begin(0)

    def begin(self, size_px: int) -> None:
        """Empty the batch, for tiles of side ``size_px``."""
        if self.tiles.shape[1] != size_px:
            self.tiles = np.zeros((self.size, size_px, size_px, 3), dtype=np.uint8)
        self.parts: list[Part] = []
        self.ends: list[SlideWork] = []
        self.count = 0
        self._left = 1  # the reads, and the sealing
        self._ready = threading.Event()
        self._lock = threading.Lock()

    @property
    def size_px(self) -> int:
        """Side of a tile."""
        return self.tiles.shape[1]

    @property
    def is_full(self) -> bool:
        """Whether no other tile or slide fits."""
        slides = len({id(part.work) for part in self.parts}) + len(self.ends)
        return self.count == self.size or slides >= 2 * MAX_SLIDES_A_BATCH

    def take(self, work: SlideWork, rows: NDArray[np.int64]) -> Part:
        """Give the next places to some rows of a slide."""
        part = Part(work, rows, self.count)
        self.parts.append(part)
        self.count += len(rows)
        with self._lock:
            self._left += 1
        return part

    def one_less(self) -> None:
        """One read has ended, or the batch is sealed."""
        with self._lock:
            self._left -= 1
            if not self._left:
                self._ready.set()

    def wait(self) -> None:
        """Wait until every tile is read; clear the places that no tile has."""
        self._ready.wait()
        self.tiles[self.count :] = 0


@dataclass(frozen=True)
class Read:
    """Some tiles to read."""

    batch: Batch
    part: Part

    def run(self) -> None:
        """Read them."""
        try:
            self.part.work.read(self.part.rows, self.batch.tiles[self.part.places])
        finally:
            self.batch.one_less()


class Feeder:
    """Deals out reads in the order of slides and rows, and batches in that order, whoever reads.

    A batch buffer is used again when it is given back, so at most ``buffers`` batches of pixels exist.

    Args:
        works: slides, taken one by one when their turn comes.
        batch_size: tiles a batch.
        buffers: batches at most in memory.
    """

    def __init__(self, works: Iterable[SlideWork], batch_size: int, buffers: int) -> None:
        self.sealed: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(Batch(batch_size))
        self._reads = self._deal(works)
        self._lock = threading.Lock()
        self._stopped = False

    def next_read(self) -> Read | None:
        """The next tiles to read, or None when all are dealt out. Waits for a free buffer."""
        with self._lock:
            try:
                return None if self._stopped else next(self._reads, None)
            except BaseException as error:  # noqa: BLE001  (raised again where batches are taken)
                self._stopped = True
                self.sealed.put(error)
                return None

    def give_back(self, batch: Batch) -> None:
        """Let a batch's buffer be used again."""
        self._free.put(batch)

    def stop(self) -> None:
        """Deal out nothing more."""
        self._stopped = True
        self._free.put(None)

    def _deal(self, works: Iterable[SlideWork]) -> Iterator[Read]:
        batch: Batch | None = None
        for work in works:
            at, ended = 0, False
            while not ended:
                if batch is not None and (batch.is_full or batch.size_px != work.size_px):
                    batch = self._seal(batch)
                batch = batch or self._begin(work.size_px)
                if batch is None:
                    return
                rows = work.rows[at : at + min(READ_TILES, batch.size - batch.count)]
                at += len(rows)
                ended = at >= len(work.rows) or work.error is not None
                if ended:
                    batch.ends.append(work)
                if len(rows):
                    read = Read(batch, batch.take(work, rows))
                    batch = self._seal(batch) if batch.is_full else batch
                    yield read
        if batch is not None:
            self._seal(batch)
        self.sealed.put(None)

    def _begin(self, size_px: int) -> Batch | None:
        """An empty batch, or None when there is to be no more; waits for a buffer."""
        batch = self._free.get()
        if batch is not None:
            batch.begin(size_px)
        return batch

    def _seal(self, batch: Batch) -> None:
        """Hand a batch over: nothing more goes into it."""
        batch.one_less()
        self.sealed.put(batch)
