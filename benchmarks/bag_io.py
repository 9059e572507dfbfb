"""CPU time of writing and reading bags: ours, resizable appends, and one row a chunk as CLAM and TRIDENT write.

python benchmarks/bag_io.py [--tiles 15000] [--width 1024] [--rounds 5]

All stores get the same float16 features in batches of 64 and end with fsync; the page cache is warm when they are
read. Medians of interleaved rounds, CPU seconds of this process (user and system).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mhim.bag import Bag, load_bag, save_bag
from mhim.partial_bag import BagPlan, PartialBag

BATCH = 64
Features = NDArray[np.float16]


def write_ours(path: Path, features: Features, xy_px0: NDArray[np.int64]) -> None:
    """Created at full size, whole chunks of 512 rows past the library, checksums and journal included."""
    plan = BagPlan(Bag("a", np.zeros((0, 0)), xy_px0, {"mpp": 0.5}), features.shape[1], "float16")
    bag = PartialBag(path, plan)
    for start in range(0, len(features), BATCH):
        rows = np.arange(start, min(start + BATCH, len(features)))
        for chunk in bag.put(rows, features[rows[0] : rows[-1] + 1], {}):
            bag.write(chunk)
    bag.finish()


def write_at_once(path: Path, features: Features, xy_px0: NDArray[np.int64]) -> None:
    """The whole matrix in one call, as ``mhim convert`` does; features held in memory."""
    save_bag(path, Bag("a", features, xy_px0))


def write_resizable(path: Path, features: Features, xy_px0: NDArray[np.int64], flush: bool = False) -> None:
    """One open file, chunks of 512 rows, 64 rows appended at a time; a kill loses the file."""
    width = features.shape[1]
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("features", (0, width), "float16", maxshape=(None, width), chunks=(512, width))
        for start in range(0, len(features), BATCH):
            stop = min(start + BATCH, len(features))
            stored.resize(stop, axis=0)
            stored[start:stop] = features[start:stop]
            if flush:
                file.flush()
        file["coords"] = xy_px0
    _sync(path)


def write_flushed(path: Path, features: Features, xy_px0: NDArray[np.int64]) -> None:
    """The same, flushed after every append; a kill between appends loses nothing."""
    write_resizable(path, features, xy_px0, flush=True)


def write_reopened(path: Path, features: Features, xy_px0: NDArray[np.int64]) -> None:
    """The same, the file opened again for each append, as CLAM and TRIDENT do."""
    width = features.shape[1]
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (0, width), "float16", maxshape=(None, width), chunks=(512, width))
        file["coords"] = xy_px0
    for start in range(0, len(features), BATCH):
        stop = min(start + BATCH, len(features))
        with h5py.File(path, "a") as file:
            stored = file["features"]
            assert isinstance(stored, h5py.Dataset)
            stored.resize(stop, axis=0)
            stored[start:stop] = features[start:stop]
    _sync(path)


def write_rows(path: Path, features: Features, xy_px0: NDArray[np.int64]) -> None:
    """One row a chunk, the file opened again for each batch."""
    width = features.shape[1]
    for start in range(0, len(features), BATCH):
        stop = min(start + BATCH, len(features))
        with h5py.File(path, "a") as file:
            for name, values, columns in (("features", features, width), ("coords", xy_px0, 2)):
                if start == 0:
                    file.create_dataset(name, (0, columns), values.dtype, maxshape=(None, columns), chunks=(1, columns))
                stored = file[name]
                assert isinstance(stored, h5py.Dataset)
                stored.resize(stop, axis=0)
                stored[start:stop] = values[start:stop]
    _sync(path)


def read_ours(path: Path) -> None:
    """With every check: complete, finite, coordinates that fit."""
    load_bag(path)


def read_plain(path: Path) -> None:
    """The array alone."""
    with h5py.File(path, "r") as file:
        stored = file["features"]
        assert isinstance(stored, h5py.Dataset)
        stored[()]


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def cpu_seconds(work: Callable[..., None], *arguments: Any) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=15_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    features = np.random.default_rng(0).normal(size=(chosen.tiles, chosen.width)).astype(np.float16)
    xy_px0 = np.arange(2 * chosen.tiles).reshape(-1, 2)
    writers = {
        "ours": write_ours,
        "at once": write_at_once,
        "resizable": write_resizable,
        "resizable, flushed": write_flushed,
        "resizable, reopened": write_reopened,
        "one row": write_rows,
    }
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.rounds):
            for name, write in writers.items():
                path = Path(folder) / f"{name}.h5"
                path.unlink(missing_ok=True)
                times.setdefault(f"write {name}", []).append(cpu_seconds(write, path, features, xy_px0))
            ours, rows = Path(folder) / "ours.h5", Path(folder) / "one row.h5"
            times.setdefault("read ours, checked", []).append(cpu_seconds(read_ours, ours))
            times.setdefault("read ours", []).append(cpu_seconds(read_plain, ours))
            times.setdefault("read one row", []).append(cpu_seconds(read_plain, rows))
    median = {name: statistics.median(values) for name, values in times.items()}
    megabytes = features.nbytes / 1e6
    for name, values in times.items():
        spread = f"[{min(values) * 1000:.0f}..{max(values) * 1000:.0f}]"
        print(f"{name:26} {median[name] * 1000:7.1f} ms CPU {spread:12} {megabytes / median[name]:7.0f} MB per CPU-s")
    others = (name for name in writers if name not in ("ours", "at once"))
    ratios = (f"{name} {median[f'write {name}'] / median['write ours']:.1f}" for name in others)
    print(f"write, times ours: {'; '.join(ratios)}")
    print(f"read: one row / ours {median['read one row'] / median['read ours']:.1f}, "
          f"one row / ours with every check {median['read one row'] / median['read ours, checked']:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
