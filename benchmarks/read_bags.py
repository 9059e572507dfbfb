"""CPU time and throughput of reading bags: mapped, and as other programs keep them; and what it adds to an epoch.

    python benchmarks/read_bags.py --rounds 7
    python benchmarks/read_bags.py --epoch --rounds 5

Each way opens every file afresh and touches every byte (a sum of 64-bit words), page cache warm, one thread. "again" is
what training does from the second epoch on: the mapping is there already. `cat` runs beside them. With --epoch, an
epoch of training from mapped files takes turns with one from features in memory, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import torch

from mhim.bag import Bag, content_digest, load_bag, save_bag
from mhim.cohort import Cohort, SlideRow
from mhim.foreign import ConvertConfig
from mhim.repack import plan_repack, repack
from mhim.training.data import BagStore
from mhim.training.mapping import map_features

ATTRIBUTES = {"encoder": "bench", "mpp": 0.5, "tile_size_level0": 512.0, "reader": "openslide", "backend": "torch"}


def sizes_of(count: int, seed: int = 0) -> list[int]:
    """Log-normal bag sizes, median 8,192, clipped to 2,000 to 20,000."""
    drawn = np.random.default_rng(seed).lognormal(np.log(8192), 0.6, count)
    return [int(size) for size in drawn.clip(2000, 20000)]


def write_all(folder: Path, sizes: list[int], width: int) -> None:
    """The same bags in every format."""
    for number, size in enumerate(sizes):
        half = np.random.default_rng(number).normal(size=(size, width)).astype(np.float16)
        xy_px0 = np.arange(2 * size).reshape(-1, 2)
        save_bag(folder / "ours" / f"s{number}.h5", Bag(f"s{number}", half, xy_px0, ATTRIBUTES))
        for name, values in (("16", half), ("32", half.astype(np.float32))):
            for kind in ("pt", "npy", "clam"):
                (folder / f"{kind}{name}").mkdir(exist_ok=True)
            torch.save(torch.from_numpy(values), folder / f"pt{name}" / f"s{number}.pt")
            np.save(folder / f"npy{name}" / f"s{number}.npy", values)
            with h5py.File(folder / f"clam{name}" / f"s{number}.h5", "w") as file:
                file.create_dataset("features", data=values, chunks=(1, width))
                file["coords"] = xy_px0
    write_joined(folder, len(sizes))
    config = ConvertConfig.model_validate({})
    repack(plan_repack(folder / "ours", folder / "packed", config, True), config)


def write_joined(folder: Path, count: int) -> None:
    """All bags in one flat file, for comparison: there is one file to open."""
    (folder / "joined16").mkdir(exist_ok=True)
    with (folder / "joined16" / "all.bin").open("wb") as file:
        for number in range(count):
            file.write(np.load(folder / "npy16" / f"s{number}.npy").data)


def touch(values: torch.Tensor) -> None:
    """Read every byte."""
    values.reshape(-1).view(torch.int64).sum()


def read_clam(path: Path) -> torch.Tensor:
    """One row a chunk."""
    with h5py.File(path, "r") as file:
        stored = file["features"]
        assert isinstance(stored, h5py.Dataset)
        return torch.from_numpy(stored[()])


def mapped(path: Path) -> torch.Tensor:
    """Ours, as training opens it."""
    features = map_features(path)
    assert features is not None
    return features


def checked(path: Path) -> torch.Tensor:
    """Ours, as it is gone through before training."""
    features = mapped(path)
    content_digest(load_bag(path, features.numpy()))
    return features


READERS: dict[str, tuple[str, Callable[[Path], torch.Tensor]]] = {
    "packed, mapped, opened afresh": ("packed", mapped),
    "packed, checked and digested": ("packed", checked),
    "ours unpacked, checked and digested": ("ours", checked),
    "joined float16, np.memmap": ("joined16", lambda path: torch.from_numpy(np.memmap(path, np.uint8, "c"))),
    ".pt float16, torch.load": ("pt16", lambda path: torch.load(path, weights_only=True)),
    ".pt float32, torch.load": ("pt32", lambda path: torch.load(path, weights_only=True)),
    ".npy float16, np.load": ("npy16", lambda path: torch.from_numpy(np.load(path))),
    ".npy float32, np.load": ("npy32", lambda path: torch.from_numpy(np.load(path))),
    ".h5 float16, one row a chunk": ("clam16", read_clam),
    ".h5 float32, one row a chunk": ("clam32", read_clam),
}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def reading(folder: Path, rounds: int, slow: bool) -> None:
    """Print CPU seconds, throughput, and ratios to torch.load and cat."""
    kept = [mapped(path) for path in sorted((folder / "packed").iterdir())]
    ways: dict[str, Callable[[], object]] = {"packed, mapped, again (training)": lambda: [touch(each) for each in kept]}
    for name, (place, read) in READERS.items():
        if slow or not place.startswith("clam"):
            files = sorted((folder / place).iterdir())
            ways[name] = lambda files=files, read=read: [touch(read(path)) for path in files]
    packed = [str(path) for path in sorted((folder / "packed").iterdir())]
    megabytes = sum(Path(path).stat().st_size for path in packed) / 1e6
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, work in ways.items():
            found.setdefault(name, []).append(timed(work))
        start = time.perf_counter()
        with Path(os.devnull).open("wb") as nothing:
            subprocess.run(["cat", *packed], check=True, stdout=nothing)
        found.setdefault("cat", []).append((0.0, time.perf_counter() - start))
    cpu = {name: statistics.median(each[0] for each in values) for name, values in found.items()}
    wall = {name: statistics.median(each[1] for each in values) for name, values in found.items()}
    print(f"{len(packed)} bags, {megabytes:.0f} MB in float16; medians of {rounds} rounds")
    for name in found:
        size = megabytes * (2 if "32" in name else 1)
        ratios = (
            ""
            if name == "cat"
            else "".join(f"  {cpu[name] / cpu[f'.pt float{bits}, torch.load']:6.2f} of .pt {bits}" for bits in (16, 32))
        )
        print(f"{name:40s} {1e3 * cpu[name]:8.1f} CPU ms  {size / wall[name]:7.0f} MB/s  "
              f"{wall['cat'] / wall[name] * size / megabytes:5.2f} x cat{ratios}")  # fmt: skip


def serve(folder: Path, mapping: bool, model: str, method: str, line: Connection) -> None:
    """Train an epoch whenever asked; answer with its CPU and wall seconds."""
    from mhim.bench.step import LR, WEIGHT_DECAY, make_method
    from mhim.heap import keep_heap
    from mhim.training.epoch import train_epoch
    from mhim.training.step import BagStep, adam

    keep_heap()
    torch.set_num_threads(1)
    names = sorted((path.stem for path in (folder / "packed").iterdir()), key=lambda name: int(name[1:]))
    rows = tuple(SlideRow(slide_id=name, case_id=name, label="ab"[number % 2]) for number, name in enumerate(names))
    store = BagStore(folder / "packed", Cohort("bench", rows, ("a", "b")), mapped=mapping)
    bags = store.part(names)
    width = bags[0].features.shape[1]
    trained = make_method(model, method, width, 2, 0, torch.device("cpu"))
    stepping, generator = BagStep(trained, adam(trained, LR, WEIGHT_DECAY)), torch.Generator().manual_seed(0)
    line.send("ready")
    epoch = 0
    while line.recv():
        line.send(timed(lambda epoch=epoch: train_epoch(stepping, bags, epoch, 1 << 20, generator)))
        epoch += 1


def drop(folder: Path) -> None:
    """Have the system forget the pages of the packed files."""
    for path in (folder / "packed").iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epochs(folder: Path, rounds: int) -> None:
    """Print an epoch from mapped files over one from memory; the first epoch maps and reads the files, cold."""
    context = get_context("spawn")
    for model, method in (("abmil", "supervised"), ("abmil", "mhim-v1")):
        lines = {}
        for name in ("disk", "memory"):
            ours, theirs = Pipe()
            context.Process(target=serve, args=(folder, name == "disk", model, method, theirs), daemon=True).start()
            ours.recv()
            lines[name] = ours
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
        drop(folder)
        for _ in range(rounds + 1):
            for name, line in lines.items():
                line.send(True)
                found[name].append(line.recv())
        for line in lines.values():
            line.send(False)
        cpu, wall = ({name: statistics.median(each[part] for each in values[1:]) for name, values in found.items()}
                     for part in (0, 1))  # fmt: skip
        ratio = f"{cpu['disk'] / cpu['memory']:.3f} (wall {wall['disk'] / wall['memory']:.3f})"
        print(f"{method:10s} {model}: {cpu['memory']:.2f} CPU s from memory, {cpu['disk']:.2f} mapped = {ratio}")
        first = found["disk"][0]
        print(f"    the first one, files not in the page cache: {first[0]:.2f} CPU s, {first[1]:.2f} s", flush=True)


def main() -> None:
    """Write the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--epoch", action="store_true", help="epochs from disk and from memory, instead of reading alone"
    )
    parser.add_argument("--fast", action="store_true", help="leave out one row a chunk")
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        if not (folder / "packed").is_dir():
            write_all(folder, sizes_of(args.bags), args.width)
        if args.epoch:
            epochs(folder, args.rounds)
        else:
            reading(folder, args.rounds, slow=not args.fast)


if __name__ == "__main__":
    main()
