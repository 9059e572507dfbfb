"""Tissue and tile grid: CPU time, peak memory and agreement with the known mask, against two older ways.

    python benchmarks/tissue_speed.py                       # makes two slides (20k and 61k px) in a temporary folder
    python benchmarks/tissue_speed.py --slides DIR          # keeps them there for the next run
    python benchmarks/tissue_speed.py --sizes 20480 --rounds 11

Each method runs in its own process, one thread, methods interleaved round by round; CPU time of the process and of
those it starts, and wall time, are counted from the open slide to the finished coordinates, without imports; the
median over rounds is shown, and ratios to the default. The first slide of a process pays for fresh memory and first
calls; "later slides" is the median of further passes in the same process. Peak memory is the growth of the process over
its imports. CPU times may be taken beside other work at normal priority; wall times need a quiet machine.

* ``stain``: the default: coarsest level, ``mhim.tissue.segment_tissue``, then ``mhim.tiles.plan_tiles``.
* ``clam:tcga``: our own implementation of CLAM's segmentation and grid from its published description
  (OpenSlide, level of downsampling 64, contours); not CLAM's program.
* ``clam-plain``: the same as CLAM's program does it: OpenSlide, and one point after the other tested against the
  contours in a loop over tiles (``tests/clam_oracle.py``); without worker processes.
* ``clam-pool``: the same with a pool of processes (one a core, at most 4) started anew for every contour, whose
  tiles it tests, as CLAM's program works.
* ``tile-otsu``: our own implementation of the manner of TRIDENT's Otsu segmenter as described in public: the
  slide is read in tiles of 512 px at 8 um per px (1.25 x), each is thresholded by its own Otsu on saturation,
  the tiles are stitched, and a lattice is laid over; not TRIDENT's program, and without worker processes.
* ``otsu-loader``: the same with the tiles read in two worker processes of a ``torch`` DataLoader, as described.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MPP = 0.25
METHODS = ("stain", "clam:tcga", "clam-plain", "clam-pool", "tile-otsu", "otsu-loader")
PASSES = 5
TILES = {"mpp": 0.5, "size_px": 256}


def truth_of(size: int, seed: int = 0):
    """Known tissue, (size / 16, size / 16) bool: pieces with ragged borders, gaps and lumens, about 35 %."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    side = size // 16
    field = np.zeros((side, side), np.float32)
    for octave, weight in ((4, 1.0), (12, 0.35), (40, 0.08)):
        noise = rng.normal(size=(octave + 1, octave + 1)).astype(np.float32)
        field += weight * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    field -= 2.0 * np.maximum(np.abs(x), np.abs(y)) ** 6
    return field > np.quantile(field, 0.65)


def coarse_picture(truth, seed: int = 0):
    """The slide at 1/16, (h, w, 3) uint8: stain with structure at many scales, noisy off-white glass."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed + 1)
    side = len(truth)
    nuclei, stroma = (np.zeros((side, side), np.float32) for _ in range(2))
    for cells, weight in ((8, 0.3), (64, 0.5), (512, 0.6), (side, 0.35)):
        for field in (nuclei, stroma):
            noise = rng.normal(size=(min(cells, side),) * 2).astype(np.float32)
            field += weight * cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
    inside = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 0.5)
    haematoxylin = inside * np.clip(0.35 + 0.2 * nuclei, 0.02, 1.5)
    eosin = inside * np.clip(0.30 + 0.15 * stroma, 0.04, 1.2)
    density = haematoxylin[..., None] * np.array([0.65, 0.70, 0.29]) + eosin[..., None] * np.array([0.07, 0.99, 0.11])
    rgb = 242 * np.exp(-density) + rng.normal(0, 1.5, (side, side, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def make_slide(path: Path, size: int) -> None:
    """A pyramid (1, 4, 16, 64) of JPEG tiles of 256 px at 0.25 um per px, and its truth beside it."""
    import cv2
    import numpy as np
    import simplejpeg
    import tifffile

    truth = truth_of(size)
    levels = {16: coarse_picture(truth)}
    levels[64] = cv2.resize(levels[16], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(2)
    grain = rng.normal(0, 9, (64, 256, 256, 1)).astype(np.float32)

    def tiles(factor: int):
        side = size // factor
        source = levels.get(factor)
        for top in range(0, side, 256):
            for left in range(0, side, 256):
                if source is not None:
                    tile = source[top : top + 256, left : left + 256]
                    tile = np.pad(tile, ((0, 256 - tile.shape[0]), (0, 256 - tile.shape[1]), (0, 0)), mode="edge")
                else:
                    scale = 16 // factor
                    rows, columns = (slice(at // scale, at // scale + 256 // scale) for at in (top, left))
                    small = levels[16][rows, columns]
                    tile = cv2.resize(small, (256, 256), interpolation=cv2.INTER_LINEAR).astype(np.float32)
                    if small.min() < 200:
                        tile += grain[int(rng.integers(64))]
                    tile = tile.clip(0, 255).astype(np.uint8)
                yield simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 80, "RGB", "420")

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in (1, 4, 16, 64):
            writer.write(
                tiles(factor),
                shape=(size // factor, size // factor, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=int(factor > 1),
                metadata=None,
                resolution=(1e4 / (MPP * factor), 1e4 / (MPP * factor)),
                resolutionunit="CENTIMETER",
            )
    np.save(path.with_suffix(".npy"), truth)


class Tiles:
    """Tiles of a slide at a scale, one after the other, each process with a file of its own."""

    def __init__(self, slide, size_px: int, mpp: float) -> None:
        self.slide, self.size_px, self.mpp, self.process = slide, size_px, mpp, os.getpid()
        self.step = round(size_px * mpp / slide.mpp0)
        self.columns, self.rows = (math.ceil(side / self.step) for side in slide.size_px0)

    def __len__(self) -> int:
        return self.rows * self.columns

    def __getitem__(self, index: int):
        if index >= len(self):
            raise IndexError(index)
        if self.process != os.getpid():
            self.slide, self.process = type(self.slide)(self.slide.path, self.slide.mpp0), os.getpid()
        row, column = divmod(index, self.columns)
        return self.slide.read((column * self.step, row * self.step), (self.size_px, self.size_px), self.mpp)


def tile_otsu(slide, workers: int = 0, size_px: int = 512, mpp: float = 8.0):
    """Otsu on the saturation of each tile of 512 px at 8 um per px."""
    import cv2
    import numpy as np

    from mhim.tissue import TissueMask

    tiles = Tiles(slide, size_px, mpp)
    columns, rows = tiles.columns, tiles.rows
    cells = np.zeros((rows * size_px, columns * size_px), dtype=bool)
    if workers:
        from torch.utils.data import DataLoader

        found = (batch[0].numpy() for batch in DataLoader(tiles, batch_size=1, num_workers=workers))
    else:
        found = iter(tiles)
    for row in range(rows):
        for column in range(columns):
            rgb = next(found)
            saturation = cv2.medianBlur(np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1]), 7)
            _, binary = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
            closed = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
            cells[row * size_px : (row + 1) * size_px, column * size_px : (column + 1) * size_px] = closed > 0
    width, height = (math.ceil(side * slide.mpp0 / mpp) for side in slide.size_px0)
    return TissueMask(cells[:height, :width], (mpp / slide.mpp0,) * 2, mpp, "tile-otsu")


def kept_tiles(contour, holes, corners, size: int):
    """Those of some corners at which CLAM takes a tile."""
    import clam_oracle

    return [
        (x, y)
        for x, y in corners
        if clam_oracle._inside(contour, x, y, size)
        and not any(clam_oracle._in_hole(hole, x, y, size) for hole in holes)
    ]


def clam_pool(file, size: int) -> int:
    """CLAM's tiles of a slide, with a pool of processes for every contour."""
    import multiprocessing

    import cv2

    import clam_oracle

    count = 0
    for contour, holes in clam_oracle.contours_of(file, "tcga"):
        left, top, width, height = cv2.boundingRect(contour)
        corners = [(x, y) for x in range(left, left + width, size) for y in range(top, top + height, size)]
        with multiprocessing.get_context("fork").Pool(min(4, os.cpu_count() or 1)) as pool:
            found = pool.starmap(kept_tiles, [(contour, holes, [corner], size) for corner in corners])
        count += sum(map(len, found))
    return count


def clam_plain(path: Path, pooled: bool):
    """CLAM's tiles of a slide one point at a time, as a function without arguments that counts them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import openslide

    import clam_oracle

    file = openslide.OpenSlide(path)
    if pooled:
        return lambda: clam_pool(file, 512)
    return lambda: len(clam_oracle.coordinates(file, "tcga", 512, 512))


def measure(path: Path, method: str) -> dict[str, float]:
    """One method on one slide, in this process."""
    import cv2
    import numpy as np

    from mhim.heap import keep_pages
    from mhim.slides import open_slide
    from mhim.slides.openslide import OpenSlideSlide
    from mhim.tiles import TileSpec, plan_tiles
    from mhim.tissue import TissueConfig, segment_tissue, stored_downsamples

    cv2.setNumThreads(1)
    is_otsu = method in ("tile-otsu", "otsu-loader")
    if is_otsu:
        import torch.utils.data  # noqa: F401  (imports are not counted)
    slide = OpenSlideSlide(path, MPP) if is_otsu else open_slide(path)
    downsamples = stored_downsamples(slide)
    plain = clam_plain(path, method == "clam-pool") if method in ("clam-plain", "clam-pool") else None
    if method == "stain":
        keep_pages()  # as "mhim tile" does
    before = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    spec = TileSpec(size_px=512, level=0) if method.startswith("clam") else TileSpec(**TILES)

    def tissue_of():
        config = TissueConfig(method="clam:tcga" if plain else method)
        return tile_otsu(slide, 2 * (method == "otsu-loader")) if is_otsu else segment_tissue(slide, config)

    def once():
        start, wall = cpu_seconds(), time.perf_counter()
        if plain:
            tissue, count = None, plain()
        else:
            tissue = tissue_of()
            count = len(plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, downsamples=downsamples))
        wall = time.perf_counter() - wall
        return tissue, count, (cpu_seconds() - start) * 1e3, wall * 1e3

    tissue, count, cpu_ms, wall_ms = once()
    later = [once()[2:] for _ in range(PASSES)]
    later_ms, later_wall_ms = (sorted(times)[PASSES // 2] for times in zip(*later, strict=True))
    peak_mb = _memory_mb("VmHWM") - before
    tissue = tissue or tissue_of()
    truth = np.load(path.with_suffix(".npy"))
    found = cv2.resize(tissue.cells.astype(np.uint8), truth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return {
        "cpu_ms": cpu_ms,
        "wall_ms": wall_ms,
        "later_ms": later_ms,
        "later_wall_ms": later_wall_ms,
        "peak_mb": peak_mb,
        "iou": float((found & truth).sum() / (found | truth).sum()),
        "tiles": count,
        "um_per_cell": tissue.um_per_cell,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _memory_mb(key: str) -> float:
    """Resident memory now (VmRSS) or at most since the last reset (VmHWM), Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def compare(path: Path, rounds: int) -> None:
    """Print a table of the methods on one slide."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            command = [sys.executable, __file__, "--one", str(path), method]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found[method].append(json.loads(done.stdout))
    median = {m: {k: sorted(run[k] for run in runs)[len(runs) // 2] for k in runs[0]} for m, runs in found.items()}
    base = median["stain"]
    print(f"{path.name}: {rounds} rounds")
    print(
        "| method | CPU ms [min..max] | ratio | later slides, CPU ms | ratio | wall ms | ratio | later, wall ms "
        "| ratio | peak MB | IoU | tiles | um per cell |"
    )
    print("|---" * 13 + "|")
    for method, row in median.items():
        times = sorted(run["cpu_ms"] for run in found[method])
        print(
            f"| {method} | {row['cpu_ms']:.1f} [{times[0]:.1f}..{times[-1]:.1f}] "
            f"| {row['cpu_ms'] / base['cpu_ms']:.1f} "
            + "".join(
                f"| {row[key]:.1f} | {row[key] / base[key]:.1f} " for key in ("later_ms", "wall_ms", "later_wall_ms")
            )
            + f"| {row['peak_mb']:.0f} | {row['iou']:.3f} | {row['tiles']:.0f} | {row['um_per_cell']:.1f} |"
        )


def main() -> None:
    """Make the slides, run the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, help="folder of the slides; kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20480, 61440])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("SLIDE", "METHOD"), help="measure one method in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), options.one[1])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.slides or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for size in options.sizes:
            path = folder / f"tissue_{size}.tif"
            if not path.with_suffix(".npy").exists():
                make_slide(path, size)
            compare(path, options.rounds)


if __name__ == "__main__":
    main()
