"""Slides to bags against the encoder alone: throughput, first batch, stalls between slides, peak memory.

python benchmarks/encode_pipeline.py throughput [--rates 200 400 800] [--resample fast] [--rounds 3]
python benchmarks/encode_pipeline.py cpu [--encoder efficientnet-lite0-mid] [--tiles 600]
python benchmarks/encode_pipeline.py memory [--sides 20000 50000 100000]

Slides are generated (``tiled_slide.py``: 0.25 mpp, JPEG Q80 4:2:0, pyramid) in --folder and kept there; tiles are
256 px at 0.5 mpp. ``throughput``: an accelerator is simulated by sleeping, so that it needs no CPU; wall time over
several slides, against batches / rate. With --reading MS reading sleeps, too, MS a tile, which shows the overlap on a
machine that is busy with other things. ``cpu``: a real encoder on the same cores; CPU time of the whole against encoder
alone plus reading alone, interleaved, which is the work-conserving bound whatever else runs on the machine.
``memory``: peak resident memory of a process that encodes one slide, for slides of different sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiled_slide import write_tiled_slide

from mhim.config import ComponentConfig
from mhim.encode import EncodeConfig, EncodeJob, build_encoder, encode_jobs
from mhim.encode.pipeline import Pipeline
from mhim.encoders import Encoder, encoders
from mhim.slides import open_slide
from mhim.tile_io import save_grid
from mhim.tile_reader import TileReader
from mhim.tiles import TileGrid
from mhim.tissue import TissueMask

TILE_PX, MPP, MPP0 = 256, 0.5, 0.25


@encoders.register("accelerator")
class Accelerator(Encoder):
    """Sleeps as long as a device of ``rate`` images a second would take, without CPU; remembers when."""

    class Config(ComponentConfig):
        """Images a second; 0 for no wait at all."""

        rate: float = 400

    config: Config
    dim = 1024

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        self.calls: list[tuple[float, float]] = []

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) -> zeros (B, 1024), after the time that it takes."""
        start = time.monotonic()
        if self.config.rate:
            time.sleep(len(tiles) / self.config.rate)
        self.calls.append((start, time.monotonic()))
        return np.zeros((len(tiles), self.dim), dtype=np.float32)


def slide_with_grid(folder: Path, name: str, side_px: int, tiles: int | None = None, offset_px0: int = 0) -> EncodeJob:
    """A generated slide and a grid of all its tiles, or the first ``tiles`` of them, from ``offset_px0`` on."""
    path = folder / f"{name}.svs"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tiled_slide(path.with_suffix(".part"), side_px, mpp=MPP0)
        path.with_suffix(".part").rename(path)
    step = round(TILE_PX * MPP / MPP0)
    corners = np.arange(offset_px0, side_px - step + 1, step)
    y, x = np.meshgrid(corners, corners, indexing="ij")
    xy_px0 = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)[:tiles]
    with open_slide(path) as slide:
        said = {
            "slide_id": name,
            "slide_path": str(path.resolve()),
            "mpp": MPP,
            "slide_mpp": slide.mpp0,
            "slide_mpp_source": slide.mpp0_source,
            "tile_size_px": TILE_PX,
            "tile_size_level0": TILE_PX * MPP / slide.mpp0,
            "level0_width": slide.size_px0[0],
            "level0_height": slide.size_px0[1],
            "config_fingerprint": f"{tiles} {offset_px0}",
            "input_fingerprint": "generated",
        }
    tissue = TissueMask(np.ones((1, 1), dtype=bool), (float(side_px), float(side_px)), side_px * MPP0)
    grid_path = folder / "tiles" / f"{name}.h5"
    save_grid(grid_path, TileGrid(name, xy_px0, tissue, said))
    return EncodeJob(grid_path, folder / "unused")


def run(jobs: list[EncodeJob], config: EncodeConfig, encoder: Encoder, workers: int) -> tuple[float, float, float]:
    """Encode; gives the start on the monotonic clock, wall and CPU seconds."""
    with tempfile.TemporaryDirectory() as out:
        here = [EncodeJob(job.grid_path, Path(out)) for job in jobs]
        failed: list[str] = []
        pipeline = Pipeline(encoder, config, workers, lambda end: failed.append(end.reason) if end.reason else None)
        start, cpu = time.monotonic(), time.process_time()
        pipeline.run(here)
        if failed:
            raise SystemExit(failed[0])
        return start, time.monotonic() - start, time.process_time() - cpu


def sleeping_read(seconds: float) -> Callable[..., dict[int, str]]:
    """In place of ``TileReader.read``: sleeps for each tile."""

    def read(_: TileReader, xy_px0: NDArray[np.int64], out: NDArray[np.uint8]) -> dict[int, str]:
        time.sleep(seconds * len(xy_px0))
        out[:] = 0
        return {}

    return read


def throughput(chosen: argparse.Namespace) -> None:
    """A simulated accelerator: share of its own speed that is reached."""
    jobs = [slide_with_grid(chosen.folder, f"slide{index}", 20480, chosen.tiles) for index in range(chosen.slides)]
    if chosen.reading:
        TileReader.read = sleeping_read(chosen.reading / 1000)
    total = chosen.tiles * chosen.slides
    print(f"{chosen.slides} slides of {chosen.tiles} tiles, {chosen.workers} reading threads, {chosen.resample}; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for rate in chosen.rates:
        ratios, steady, firsts, gaps, cpus = [], [], [], [], []
        for _ in range(chosen.rounds):
            config = EncodeConfig.model_validate(
                {"encoder": {"name": "accelerator", "rate": rate}, "resample": chosen.resample}
            )
            encoder = build_encoder(config, "cpu")
            calls: list[tuple[float, float]] = vars(encoder)["calls"]
            start, wall, cpu = run(jobs, config, encoder, chosen.workers)
            batches, spent = len(calls), sum(stop - begin for begin, stop in calls)
            first, last = calls[0][0], calls[-1][1]
            ratios.append(total / rate / wall)
            steady.append(spent / (last - first))
            firsts.append(first - start)
            waits = [after[0] - before[1] for before, after in zip(calls, calls[1:], strict=False)]
            gaps.append(max(waits))
            cpus.append(cpu / total * 1000)
            assert batches == -(-total // config.batch_size)
        print(
            f"{rate:5.0f} img/s: {statistics.median(ratios):.3f} [{min(ratios):.3f}..{max(ratios):.3f}] end to end, "
            f"{statistics.median(steady):.3f} in steady state; first batch after {statistics.median(firsts):.2f} s; "
            f"longest wait of the encoder {statistics.median(gaps) * 1000:.0f} ms; "
            f"{statistics.median(cpus):.2f} CPU ms a tile"
        )


def cpu_bound(chosen: argparse.Namespace) -> None:
    """A real encoder on the same cores: CPU of the whole against its parts, and wall of encoder alone."""
    jobs = [slide_with_grid(chosen.folder, f"slide{index}", 20480, chosen.tiles // 2) for index in range(2)]
    total = chosen.tiles // 2 * 2
    shares, walls, parts = [], [], []
    real = EncodeConfig.model_validate({"encoder": chosen.encoder, "resample": chosen.resample})
    none = EncodeConfig.model_validate({"encoder": {"name": "accelerator", "rate": 0}, "resample": chosen.resample})
    encoder, nothing = build_encoder(real, "cpu"), build_encoder(none, "cpu")
    tiles = np.random.default_rng(0).integers(0, 255, (real.batch_size, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    encoder.encode(tiles)
    for _ in range(chosen.rounds):
        start, cpu = time.monotonic(), time.process_time()
        for _ in range(-(-total // real.batch_size)):
            encoder.encode(tiles)
        alone = time.process_time() - cpu
        alone_wall = time.monotonic() - start
        _, _, reading = run(jobs, none, nothing, chosen.workers)
        _, wall, whole = run(jobs, real, encoder, chosen.workers)
        shares.append((alone + reading) / whole)
        walls.append(alone_wall / wall)
        parts.append([alone, reading, whole])
    alone, reading, whole = (statistics.median(column) / total * 1000 for column in zip(*parts, strict=True))
    print(
        f"{chosen.encoder}, {total} tiles, {chosen.workers} reading threads, {chosen.resample}, load "
        f"{os.getloadavg()[0]:.1f}: encoder {alone:.2f} + reading {reading:.2f} CPU ms a tile, whole {whole:.2f}; "
        f"share of the work-conserving bound {statistics.median(shares):.3f} [{min(shares):.3f}..{max(shares):.3f}]; "
        f"wall against encoder alone {statistics.median(walls):.3f}"
    )


def memory(chosen: argparse.Namespace) -> None:
    """Peak resident memory by slide size, one process each."""
    for side in chosen.sides:
        slide_with_grid(chosen.folder / f"side{side}", "slide", side, chosen.limit, chosen.offset)
        command = [sys.executable, __file__, "one", "--folder", str(chosen.folder / f"side{side}")]
        more = ["--resample", chosen.resample, "--workers", str(chosen.workers)]
        done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
        print(f"{side} px: {done.stdout.strip()}", flush=True)


def one(chosen: argparse.Namespace) -> None:
    """Encode one slide without an encoder's cost and print this process's peak."""
    config = EncodeConfig.model_validate({"encoder": {"name": "accelerator", "rate": 0}, "resample": chosen.resample})
    before = peak_mib()
    jobs = encode_jobs(chosen.folder / "tiles", chosen.folder / "unused")
    _, wall, cpu = run(jobs, config, build_encoder(config, "cpu"), chosen.workers)
    peak = peak_mib()
    print(f"peak {peak:.0f} MiB, {peak - before:.0f} over the imports; {wall:.0f} s, {cpu:.0f} CPU s")


def peak_mib() -> float:
    """Peak resident memory of this process since it began (Linux; getrusage also counts its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "cpu", "memory", "one"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mhim_benchmark_slides")
    parser.add_argument("--rates", type=float, nargs="+", default=[200, 400, 800])
    parser.add_argument("--sides", type=int, nargs="+", default=[20000, 50000, 100000])
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--tiles", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="memory: only so many tiles of each slide, full rows from its top")
    parser.add_argument("--offset", type=int, default=0, help="corner of the grid, level-0 px; off the stored tiles")
    parser.add_argument("--reading", type=float, default=0, help="simulated reading, ms a tile and thread")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resample", default="parity")
    parser.add_argument("--encoder", default="efficientnet-lite0-mid")
    chosen = parser.parse_args()
    {"throughput": throughput, "cpu": cpu_bound, "memory": memory, "one": one}[chosen.what](chosen)


if __name__ == "__main__":
    main()
