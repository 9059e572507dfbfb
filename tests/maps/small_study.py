"""A tiny trained study for tests of maps and report: cohort, slides, annotations, bags, a two-stage run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mhim.bag import Bag, save_bag
from mhim.cohort import read_cohort
from mhim.evaluation import write_metrics
from mhim.splits import SplitConfig, make_splits, write_splits
from mhim.training.crossval import plan_run, train_run
from mhim.training.runs import RunConfig

TILE_PX0 = 64
COLUMNS, ROWS = 8, 6
N_CASES = 14


def make_study(folder: Path) -> Path:
    """A finished MHIM run in ``folder/run`` with its baseline; slide s00 has a file, s01 has slide and annotation."""
    rng = np.random.default_rng(0)
    lines = ["slide_id,case_id,label,path,annotation"]
    for case in range(N_CASES):
        slide_id, positive = f"s{case:02d}", case % 2 == 1
        features = rng.normal(size=(COLUMNS * ROWS, 5)).astype(np.float32)
        truth = np.zeros(len(features), dtype=np.float32)
        if positive:
            truth[:6] = 1
            features[:6, 0] += 3
        x, y = np.meshgrid(np.arange(COLUMNS) * TILE_PX0 + 32, np.arange(ROWS) * TILE_PX0 + 64)
        xy_px0 = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
        attributes = {"encoder": "test", "mpp": 0.5, "tile_size_level0": float(TILE_PX0)}
        save_bag(folder / "features" / f"{slide_id}.h5", Bag(slide_id, features, xy_px0, attributes, truth))
        path = f"{slide_id}.tif" if case < 2 else ""
        annotation = f"{slide_id}_mask.png" if case == 1 else ""
        lines.append(f"{slide_id},c{case:02d},{'tumour' if positive else 'normal'},{path},{annotation}")
    write_slide(folder / "s00.tif")
    write_slide(folder / "s01.tif")
    mask = np.zeros((224, 288), dtype=np.uint8)
    mask[32:64, 16:112] = 255  # level 0: x 32..224, y 64..128
    Image.fromarray(mask).save(folder / "s01_mask.png")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    train(folder)
    return folder / "run"


def write_slide(path: Path) -> None:
    """A tiled TIFF of 576 x 448 px at 0.5 um per pixel that OpenSlide reads."""
    import tifffile

    pixels = np.full((448, 576, 3), 235, dtype=np.uint8)
    pixels[64:448, 32:544] = (200, 150, 190)
    tifffile.imwrite(
        path, pixels, tile=(64, 64), photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )


def train(folder: Path) -> None:
    """Two folds, three epochs, baseline and MHIM."""
    write_splits(
        folder / "splits.csv",
        make_splits(read_cohort(folder / "cohort.csv"), SplitConfig.model_validate({"folds": 2, "val_fraction": 0.3})),
    )
    config = RunConfig.model_validate(
        {
            "cohort": folder / "cohort.csv",
            "features": folder / "features",
            "splits": folder / "splits.csv",
            "model": {"name": "abmil", "dim": 8, "attention_dim": 4, "dropout": 0.0},
            "train": {"epochs": 4, "min_epochs": 1, "lr": 0.02, "threads": 1, "device": "cpu"},
        }
    )
    from mhim.training.runs import open_run

    plan = plan_run(config)
    for stage, part in plan.stages:
        start = None if part.baseline is None else folder / "run" / "baseline"
        train_run(part, folder / "run" / stage, 0, start)
    for stage in ("run/baseline", "run"):
        write_metrics(open_run(folder / stage), 200)
