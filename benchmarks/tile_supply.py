"""CPU time of supplying 256 px tiles at 0.25 -> 0.5 mpp, against OpenSlide with Pillow and against libjpeg-turbo.

    python benchmarks/tile_supply.py -o tile_supply.json

Writes a 20480 x 20480 px slide of Q80 4:2:0 JPEG tiles (benchmarks/tiled_slide.py), then measures in interleaved
rounds; every ratio is the median over rounds of two numbers of one round. One thread unless said. The floor is the
decoding of every stored tile that the wanted tiles touch, once, from bytes in memory into a batch of tiles.

Wall gains say how many times faster two workers do a work in halves than one does both halves, one after the other. Two
processes that decode, and share nothing, show what the machine has to give; two threads are held against them. Wall
time needs a quiet machine at normal priority; on one that shares its cores with others even the processes gain less
than 2. Stretches are long (half a second and more), since a new thread needs some milliseconds to find its core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from tiled_slide import write_tiled_slide

from mhim.heap import keep_pages
from mhim.slides import open_slide
from mhim.slides.tiff import TiffSlide

TILE_PX, BATCH = 256, 64


def grid(offset: int, step: int, columns: int, rows: int) -> NDArray[np.int64]:
    """Corners in raster order."""
    x, y = np.meshgrid(np.arange(columns) * step + offset, np.arange(rows) * step + offset)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def peer(path: Path, corners: NDArray[np.int64], side_px: int) -> None:
    """Tiles as TRIDENT's loader makes them: OpenSlide, RGB, and Pillow's bicubic filter where the scale differs."""
    with openslide.OpenSlide(path) as slide:
        for x, y in corners.tolist():
            image = slide.read_region((x, y), 0, (side_px, side_px)).convert("RGB")
            np.asarray(image if side_px == TILE_PX else image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))


def supply(slide: TiffSlide, corners: NDArray[np.int64], mpp: float, mode: str, out: NDArray[np.uint8]) -> None:
    """Tiles by the direct reader, a batch at a time."""
    for start in range(0, len(corners), BATCH):
        part = corners[start : start + BATCH]
        slide.read_many(part, TILE_PX, mpp, out[: len(part)], mode)  # pyright: ignore


def stored(slide: TiffSlide, path: Path, corners: NDArray[np.int64]) -> list[bytes]:
    """The stored tiles that level-0 tiles touch, once each."""
    level = slide.levels[0]
    first, last = corners // TILE_PX, -(-(corners + TILE_PX) // TILE_PX)
    wanted = {
        row * level.columns + column
        for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
        for row in range(y0, y1)
        for column in range(x0, x1)
    }
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, int(level.counts[i]), int(level.offsets[i])) for i in sorted(wanted)]
    finally:
        os.close(descriptor)


def decode(tiles: list[bytes], out: NDArray[np.uint8]) -> None:
    """The floor."""
    for index, data in enumerate(tiles):
        simplejpeg.decode_jpeg(data, buffer=out[index % BATCH])


def cpu_ms(work: Callable[[], None], tiles: int) -> float:
    """CPU milliseconds a tile."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / tiles * 1e3


def wall_seconds(workers: list[Any]) -> float:
    """Wall time of threads or processes that are started together."""
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def wall_gain(one: Callable[[int], None], kind: Callable[..., Any] = threading.Thread) -> float:
    """How many times faster two threads, or processes, do two halves than one thread does both in turn."""

    def both() -> None:
        one(0)
        one(1)

    alone = wall_seconds([kind(target=both)])
    return alone / wall_seconds([kind(target=one, args=(half,)) for half in (0, 1)])


def largest_difference(slide: TiffSlide, path: Path, corners: NDArray[np.int64]) -> int:
    """Between the direct reader and OpenSlide at level 0."""
    out = np.empty((len(corners), TILE_PX, TILE_PX, 3), np.uint8)
    theirs = np.empty_like(out)
    slide.read_many(corners, TILE_PX, slide.mpp0, out)
    with open_slide(path, reader="openslide") as reference:
        reference.read_many(corners, TILE_PX, reference.mpp0, theirs)
    return int(np.abs(out.astype(np.int16) - theirs).max())


def measure(path: Path, rounds: int) -> dict[str, object]:
    """All numbers of one run."""
    slide = open_slide(path)
    assert isinstance(slide, TiffSlide), slide.notes
    aligned, shifted = grid(0, 256, 40, 16), grid(100, 256, 40, 16)
    half, few = grid(0, 512, 40, 8), grid(0, 512, 24, 4)
    halves = grid(100, 512, 39, 8)
    out, second = (np.zeros((BATCH, TILE_PX, TILE_PX, 3), np.uint8) for _ in range(2))
    bytes_aligned, bytes_shifted = stored(slide, path, aligned), stored(slide, path, shifted)
    many, many_halves = grid(0, 256, 80, 40), grid(0, 512, 40, 24)
    bytes_many, outs, fork = stored(slide, path, many), (out, second), multiprocessing.get_context("fork").Process

    def half_of(corners: NDArray[np.int64], mpp: float, mode: str) -> Callable[[int], None]:
        return lambda i: supply(slide, np.array_split(corners, 2)[i], mpp, mode, outs[i])

    def half_of_floor(i: int) -> None:
        decode(bytes_many[i::2], outs[i])

    runs: dict[str, Callable[[], float]] = {
        "openslide_pil": lambda: cpu_ms(lambda: peer(path, few, 512), len(few)),
        "openslide_level0": lambda: cpu_ms(lambda: peer(path, aligned[:96], 256), 96),
        "parity": lambda: cpu_ms(lambda: supply(slide, half, 0.5, "parity", out), len(half)),
        "fast": lambda: cpu_ms(lambda: supply(slide, half, 0.5, "fast", out), len(half)),
        "parity_shifted": lambda: cpu_ms(lambda: supply(slide, halves, 0.5, "parity", out), len(halves)),
        "fast_shifted": lambda: cpu_ms(lambda: supply(slide, halves, 0.5, "fast", out), len(halves)),
        "floor_aligned": lambda: cpu_ms(lambda: decode(bytes_aligned, out), len(aligned)),
        "aligned": lambda: cpu_ms(lambda: supply(slide, aligned, 0.25, "parity", out), len(aligned)),
        "floor_shifted": lambda: cpu_ms(lambda: decode(bytes_shifted, out), len(shifted)),
        "shifted": lambda: cpu_ms(lambda: supply(slide, shifted, 0.25, "parity", out), len(shifted)),
        "two_threads_wall_gain": lambda: wall_gain(half_of(many, 0.25, "parity")),
        "two_threads_wall_gain_parity": lambda: wall_gain(half_of(many_halves, 0.5, "parity")),
        "two_threads_wall_gain_fast": lambda: wall_gain(half_of(many_halves, 0.5, "fast")),
        "two_threads_wall_gain_floor": lambda: wall_gain(half_of_floor),
        "two_processes_wall_gain_floor": lambda: wall_gain(half_of_floor, fork),
    }
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for work in runs.values():
        work()
    for _ in range(rounds):
        for name, work in runs.items():
            seen[name].append(work())
    ratios = {
        "fast_over_openslide_pil": ("openslide_pil", "fast"),
        "parity_over_openslide_pil": ("openslide_pil", "parity"),
        "aligned_share_of_floor": ("floor_aligned", "aligned"),
        "shifted_share_of_floor": ("floor_shifted", "shifted"),
        "level0_over_openslide": ("openslide_level0", "aligned"),
        "two_threads_wall_gain_share_of_floor": ("two_threads_wall_gain", "two_threads_wall_gain_floor"),
        "two_threads_wall_gain_share_of_processes": ("two_threads_wall_gain", "two_processes_wall_gain_floor"),
    }
    return {
        "median": {name: round(statistics.median(values), 3) for name, values in seen.items()},
        "range": {name: [round(min(values), 3), round(max(values), 3)] for name, values in seen.items()},
        "ratio": {
            name: round(statistics.median(a / b for a, b in zip(seen[over], seen[under], strict=True)), 3)
            for name, (over, under) in ratios.items()
        },
        "largest_difference_to_openslide": largest_difference(slide, path, shifted[:80]),
        "bytes_per_stored_tile": round(float(slide.levels[0].counts.mean())),
        "reader": slide.reader_version,
    }


def main() -> None:
    """Write the slide, measure, print and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    parser.add_argument("--slide", type=Path, help="slide to use or make; by default a temporary one")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_pages()  # as "mhim encode" does
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or Path(folder) / "slide.svs"
        if not path.exists():
            write_tiled_slide(path)
        text = json.dumps(measure(path, options.rounds), indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
