"""Time and peak memory of all maps of one slide of 100,000 tiles: values, PNG, CSV, OME-TIFF and GeoJSON.

python benchmarks/maps_100k.py [100000]

A small AB-MIL run on bags of width 1024 is trained first (not timed). Then a process of its own does what
``mhim heatmap`` and ``mhim export --format geojson --format ome-tiff`` do for a slide that the run does not know:
start of Python, reading the bag, the model, maps, tile scores against an annotation, and all files are timed.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mhim.bag import Bag, save_bag

WIDTH, TILE_PX0, SMALL, N_SLIDES = 1024, 512, 60, 12
HOLES = 0.3
"""Share of the lattice without tissue."""


def make_bag(path: Path, slide_id: str, tiles: int, shift: float) -> None:
    """A bag of tiles on a lattice with holes; the first hundredth is annotated and shifted."""
    rng = np.random.default_rng(tiles)
    columns = math.ceil(math.sqrt(tiles / (1 - HOLES)))
    places = np.sort(rng.permutation(math.ceil(tiles / (1 - HOLES)))[:tiles])
    xy_px0 = np.stack([places % columns, places // columns], axis=1).astype(np.int64) * TILE_PX0
    features = rng.standard_normal((tiles, WIDTH), dtype=np.float32)
    annotated = np.zeros(tiles, dtype=np.float32)
    if shift:
        annotated[: max(1, tiles // 100)] = 1
        features[annotated > 0, :8] += shift
    attributes = {"encoder": "none", "mpp": 0.5, "slide_mpp": 0.25, "tile_size_level0": float(TILE_PX0)}
    save_bag(path, Bag(slide_id, features.astype(np.float16), xy_px0, attributes, annotated))


def prepare(folder: Path, tiles: int) -> None:
    """A trained run in ``folder/run``, and the large bag in ``folder/new``."""
    lines = ["slide_id,case_id,label"]
    for slide in range(N_SLIDES):
        make_bag(folder / "features" / f"s{slide:02d}.h5", f"s{slide:02d}", SMALL + slide, 3.0 * (slide % 2))
        lines.append(f"s{slide:02d},c{slide:02d},{('normal', 'tumour')[slide % 2]}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    make_bag(folder / "new" / "large.h5", "large", tiles, 3.0)
    where = ["--cohort", "cohort.csv", "--features", "features", "--splits", "splits.csv"]
    for words in (
        ["split", "cohort.csv", "--folds", "2", "--val-fraction", "0.3", "-o", "splits.csv"],
        ["train", *where, "--method", "supervised", "-o", "run", "--set", "train.epochs=3"],
    ):
        subprocess.run([sys.executable, "-m", "mhim", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def draw(folder: Path) -> None:
    """Everything that is timed."""
    from mhim.exports import ExportConfig, export_maps
    from mhim.maps import MapConfig, draw_maps
    from mhim.training.runs import open_run

    runs, place = [open_run(folder / "run")], {"features": folder / "new", "fold": 0}
    spent: dict[str, tuple[float, float]] = {}
    before = read_clocks()
    failed = dict(draw_maps(runs, folder / "maps", MapConfig.model_validate(place)).failed)
    spent["maps"], before = since(before), read_clocks()
    formats = ("geojson", "ome-tiff")
    failed |= export_maps(runs, folder / "exports", ExportConfig.model_validate(place | {"formats": formats})).failed
    spent["exports"] = since(before)
    if failed:
        raise SystemExit(str(failed))
    print(json.dumps(spent))


def read_clocks() -> tuple[float, float]:
    """Wall time and CPU time of this process, seconds."""
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
    """What passed on both clocks."""
    wall, cpu = read_clocks()
    return wall - before[0], cpu - before[1]


def main(tiles: int) -> None:
    """Prepare, time the child, print one line."""
    with TemporaryDirectory(prefix="mhim-maps-") as name:
        folder = Path(name)
        prepare(folder, tiles)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        said = subprocess.run([sys.executable, __file__, "draw", name], check=True, stdout=subprocess.PIPE, text=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent = json.loads(said.stdout.splitlines()[-1])
        parts = {name: f"{of_wall:.1f} s ({of_cpu:.1f} CPU s)" for name, (of_wall, of_cpu) in spent.items()}
        sizes = {path.suffix: path.stat().st_size / 1e6 for path in folder.glob("exports/large/*")}
        size = ", ".join(f"{suffix} {megabytes:.1f} MB" for suffix, megabytes in sorted(sizes.items()))
        peak = json.loads((folder / "peak.json").read_text()) / 1024
        print(
            f"{tiles} tiles: {wall:.1f} s ({cpu:.1f} CPU s); maps {parts['maps']}, exports {parts['exports']}; "
            f"peak {peak:.0f} MiB; {size}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        draw(Path(sys.argv[2]))
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (Path(sys.argv[2]) / "peak.json").write_text(str(peak_kib))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
