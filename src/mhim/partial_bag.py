"""The bag of one slide while it is made: whole chunks on disk, and a journal that says which.

The file is created at its full size, under a hidden name, with every HDF5 structure already in place; chunks
are then written at their known places in the file, past the HDF5 library. No structure changes any more, so a
process that is killed at any moment leaves a file whose finished chunks can be trusted. The journal beside it
has one line a chunk: its number, the checksum of its bytes, and the tiles that failed. Going on checks every
chunk against its checksum. When all chunks are there, one byte (``complete``) is changed and the file is renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

import mhim.artefacts as artefacts
from mhim.bag import CHUNK_ROWS, Bag, create_file, write_facts
from mhim.config import fingerprint
from mhim.errors import ArtefactError, FeatureError

try:
    import fcntl
except ImportError:  # no such locks on this system: two runs on one slide are then not told apart
    fcntl = None


@dataclass(frozen=True)
class BagPlan:
    """A bag before its features are known.

    Attributes:
        frame: slide id, coordinates (N, 2), attributes and instance truth; its features are not looked at.
        dim: feature width D.
        dtype: "float16" or "float32".
    """

    frame: Bag
    dim: int
    dtype: str

    @property
    def xy_px0(self) -> NDArray[np.int64]:
        """(N, 2) int64 corners in level-0 pixels."""
        if self.frame.xy_px0 is None:
            raise ValueError("a planned bag needs coordinates")
        return self.frame.xy_px0

    def __len__(self) -> int:
        return len(self.xy_px0)

    @property
    def identity(self) -> str:
        """Digest of everything that must be the same to go on with what is there."""
        facts = {key: str(value) for key, value in self.frame.attributes.items()}
        corners = zlib.crc32(np.ascontiguousarray(self.xy_px0).data)
        return fingerprint([facts, len(self), self.dim, self.dtype, corners, CHUNK_ROWS])

    def rows(self, kept: NDArray[np.int64], **attributes: Any) -> BagPlan:
        """The plan of some of the rows."""
        truth = self.frame.annotation_fraction
        frame = replace(
            self.frame,
            xy_px0=self.xy_px0[kept],
            annotation_fraction=None if truth is None else truth[kept],
            attributes={**self.frame.attributes, **attributes},
        )
        return replace(self, frame=frame)


@dataclass
class Chunk:
    """The rows of one chunk on their way to the disk; ``failed`` maps rows of the slide to reasons."""

    index: int
    values: NDArray[Any]
    filled: int = 0
    failed: dict[int, str] = field(default_factory=dict)


class PartialBag:
    """A bag file in the making, new or gone on with.

    Args:
        path: the file to make, ``<slide_id>.h5``; a hidden file and its journal lie beside it until then.
        plan: what it will hold.

    Raises:
        ArtefactError: another process is making it, or it cannot be written.
    """

    def __init__(self, path: Path, plan: BagPlan) -> None:
        self.path, self.plan = path, plan
        self.file_path = path.with_name(f".{path.name}.partial")
        self.journal_path = path.with_name(f".{path.name}.journal")
        self.failed: dict[int, str] = {}
        self._done = np.zeros(-(-len(plan) // CHUNK_ROWS), dtype=bool)
        self._current: Chunk | None = None
        self._file: BinaryIO | None = None
        with _named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = _locked(self.journal_path, path)
            try:
                self._places = self._go_on() or self._begin()
                self._file = self.file_path.open("r+b", buffering=0)
            except BaseException:  # raised again; the lock must not stay held
                self.close()
                raise

    @property
    def done_count(self) -> int:
        """Rows on disk, the failed ones included."""
        return len(self.plan) - len(self.pending_rows())

    def pending_rows(self) -> NDArray[np.int64]:
        """Rows of the chunks that are not on disk yet, ascending."""
        rows = np.arange(len(self.plan))
        return rows[~self._done[rows // CHUNK_ROWS]]

    def put(self, rows: NDArray[np.int64], features: NDArray[Any], failed: Mapping[int, str]) -> Iterator[Chunk]:
        """Take features; gives each chunk that became whole, for :meth:`write`.

        Args:
            rows: (k,) rows of the slide, the next ones of ``pending_rows``, without a gap.
            features: (k, D) in the dtype of the file; what lies in failed rows does not matter.
            failed: rows among these whose tiles could not be read, with the reason.
        """
        at = 0
        while at < len(rows):
            index = int(rows[at]) // CHUNK_ROWS
            first = index * CHUNK_ROWS
            stop = int(np.searchsorted(rows, first + CHUNK_ROWS))
            if self._current is None or self._current.index != index:
                count = min(CHUNK_ROWS, len(self.plan) - first)
                self._current = Chunk(index, np.empty((count, self.plan.dim), dtype=self.plan.dtype))
            chunk = self._current
            if int(rows[at]) != first + chunk.filled:
                raise ValueError("rows of a chunk come one after the other")
            chunk.values[chunk.filled : chunk.filled + stop - at] = features[at:stop]
            chunk.filled += stop - at
            if failed:
                chunk.failed |= {row: failed[row] for row in rows[at:stop].tolist() if row in failed}
            at = stop
            if chunk.filled == len(chunk.values):
                self._current = None
                yield chunk

    def write(self, chunk: Chunk) -> None:
        """Write a whole chunk and note it in the journal.

        Raises:
            ArtefactError: the disk refuses; what was written before is kept.
        """
        if self._file is None:
            raise ValueError("the bag is closed")
        first = chunk.index * CHUNK_ROWS
        if chunk.failed:
            chunk.values[[row - first for row in chunk.failed]] = 0
        with _named_errors(self.path):
            write_at(self._file, self._places[chunk.index], chunk.values)
            line = {"chunk": chunk.index, "checksum": checksum(chunk.values.data), "failed": list(chunk.failed.items())}
            _append(self._journal, line)
        self._note(chunk.index, chunk.failed)

    def finish(self) -> None:
        """Turn the whole bag into the final file, without the failed rows, which are listed in it.

        Raises:
            FeatureError: not one tile could be read.
            ArtefactError: the disk refuses; what was written before is kept.
        """
        if len(self.pending_rows()):
            raise ValueError("the bag is not whole")
        if len(self.failed) == len(self.plan):
            raise FeatureError(f"{self.path}: not one tile could be read; the first: {self.failed[min(self.failed)]}")
        with _named_errors(self.path):
            self._release_file()
            if self.failed:
                self._write_without_failed()
            else:
                with h5py.File(self.file_path, "r+", locking=False) as file:
                    file.attrs.modify("complete", np.bool_(True))
                with self.file_path.open("rb") as handle:
                    os.fsync(handle.fileno())
                self.file_path.replace(self.path)
        self.discard()

    def close(self) -> None:
        """Let go of the files; chunks that are whole stay for the next run, a file without any goes."""
        if self._done.any() or self._journal.closed:
            self._release_file()
            self._journal.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Remove what was made so far."""
        self._release_file()
        self.file_path.unlink(missing_ok=True)
        self.journal_path.unlink(missing_ok=True)
        self._journal.close()

    def _release_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _note(self, index: int, failed: Mapping[int, str]) -> None:
        self._done[index] = True
        self.failed |= failed

    def _begin(self) -> list[int]:
        """A new file and an empty journal."""
        self._journal.truncate(0)
        self.file_path.unlink(missing_ok=True)
        create_bag_file(self.file_path, self.plan)
        places = _chunk_places(self.file_path)
        _append(self._journal, {"identity": self.plan.identity})
        return places

    def _go_on(self) -> list[int]:
        """Chunk places of an earlier file of the same plan, its good chunks noted; empty where there is none."""
        self._journal.seek(0)
        lines = [entry for entry in map(_parsed, self._journal.read().splitlines()) if entry]
        if not lines or lines[0].get("identity") != self.plan.identity:
            return []
        try:
            places = _chunk_places(self.file_path)
            with self.file_path.open("rb") as file:
                for line in lines[1:]:
                    index = line["chunk"]
                    rows = min(CHUNK_ROWS, len(self.plan) - index * CHUNK_ROWS)
                    file.seek(places[index])
                    stored = file.read(rows * self.plan.dim * np.dtype(self.plan.dtype).itemsize)
                    if checksum(stored) == line["checksum"]:
                        self._note(index, dict(line["failed"]))
        except (OSError, KeyError, IndexError, TypeError, ValueError):
            self._done[:] = False
            self.failed.clear()
            return []
        return places

    def _write_without_failed(self) -> None:
        failed = np.array(sorted(self.failed), dtype=np.int64)
        kept = np.setdiff1d(np.arange(len(self.plan)), failed)
        with artefacts.atomic_path(self.path) as temporary:
            create_bag_file(temporary, self.plan.rows(kept, failed_count=len(failed)))
            with (
                h5py.File(self.file_path, "r", locking=False) as source,
                h5py.File(temporary, "r+", locking=False) as file,
            ):
                stored, wanted = source["features"], file["features"]
                assert isinstance(stored, h5py.Dataset)
                assert isinstance(wanted, h5py.Dataset)
                for start in range(0, len(kept), CHUNK_ROWS):
                    rows = kept[start : start + CHUNK_ROWS]
                    slab = stored[rows[0] : rows[-1] + 1]
                    wanted[start : start + len(rows)] = slab[rows - rows[0]]
                file.create_dataset("failed_coords", data=self.plan.xy_px0[failed])
                reasons = [self.failed[row] for row in failed.tolist()]
                file.create_dataset("failed_reason", data=reasons, dtype=h5py.string_dtype())
                file.attrs.modify("complete", np.bool_(True))


def create_bag_file(path: Path, plan: BagPlan) -> None:
    """A bag file of full size whose features have their place, in one piece, not yet filled and not complete."""
    with create_file(path) as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        dtype = h5py.h5t.py_create(np.dtype(plan.dtype), logical=True)
        h5py.h5d.create(file.id, b"features", dtype, h5py.h5s.create_simple((len(plan), plan.dim)), layout)
        write_facts(file, plan.frame)
        file.attrs["complete"] = False


def write_at(file: BinaryIO, place: int, values: NDArray[Any]) -> None:
    """Write an array's bytes at a byte offset of a file that was opened without buffer."""
    file.seek(place)
    left = np.ascontiguousarray(values).data.cast("B")
    while left:
        left = left[file.write(left) :]


def checksum(content: bytes | memoryview) -> int:
    """64 bits that tell a chunk from one that was written in part: sums of 4 KiB blocks, weighted by their place."""
    values = np.frombuffer(content, dtype=np.uint8)
    whole = len(values) // 4096 * 4096
    blocks = values[:whole].view(np.uint64).reshape(-1, 512).sum(axis=1)
    weights = 2 * np.arange(len(blocks), dtype=np.uint64) + 1
    return (int((blocks * weights).sum()) << 8 ^ zlib.crc32(values[whole:].data)) % 2**64


def _chunk_places(path: Path) -> list[int]:
    """Byte offset of each chunk of features of a file, in row order.

    Raises:
        ValueError: the features do not lie in one piece, as in files of earlier versions.
    """
    with h5py.File(path, "r", locking=False) as file:
        stored = file["features"]
        assert isinstance(stored, h5py.Dataset)
        offset, row = stored.id.get_offset(), stored.dtype.itemsize * stored.shape[1]
        if offset is None:
            raise ValueError(f"{path}: chunked")
        return [offset + start * row for start in range(0, len(stored), CHUNK_ROWS)]


def _append(journal: BinaryIO, entry: Mapping[str, Any]) -> None:
    journal.seek(0, os.SEEK_END)
    journal.write(b"\n" + json.dumps(entry).encode() + b"\n")  # first ends a line that a kill cut off
    journal.flush()


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of the journal, empty when it was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _locked(journal_path: Path, path: Path) -> BinaryIO:
    """The journal, open, and held by this process until it is closed or the process is gone."""
    while True:
        journal = journal_path.open("a+b")
        if fcntl is None:
            return journal
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.close()
            raise ArtefactError(
                f"{path}: another process is making it; wait for that one, or share the slides with --shard i/n"
            ) from None
        except OSError:  # a file system without locks
            return journal
        with contextlib.suppress(FileNotFoundError):
            if journal_path.stat().st_ino == os.fstat(journal.fileno()).st_ino:
                return journal
        journal.close()


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What the operating system refuses, as one line with the fix."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtefactError(
            f"{path}: cannot be written ({reason}); mend that and run the same command again: what is finished is kept"
        ) from error
