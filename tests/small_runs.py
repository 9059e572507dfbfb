"""Runs small enough for tests: a cohort of a few cases, two folds, a narrow AB-MIL, a few epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mhim.cohort import read_cohort
from mhim.config import merge, validate
from mhim.splits import SplitConfig, make_splits, write_splits
from mhim.training.crossval import RunPlan, plan_run, train_run
from mhim.training.runs import Run, RunConfig, open_run

SMALL_MODEL = {"name": "abmil", "dim": 16, "attention_dim": 8}
SMALL_TRAINING = {"epochs": 3, "lr": 1e-3, "threads": 1, "device": "cpu"}


def split_cohort(folder: Path, folds: int = 2) -> None:
    """Write splits.csv beside cohort.csv."""
    write_splits(folder / "splits.csv", make_splits(read_cohort(folder / "cohort.csv"), SplitConfig(folds=folds)))


def run_config(folder: Path, **changes: Any) -> RunConfig:
    values = {
        "cohort": str(folder / "cohort.csv"),
        "features": str(folder / "features"),
        "splits": str(folder / "splits.csv"),
        "model": SMALL_MODEL,
        "method": "supervised",
        "train": SMALL_TRAINING,
    }
    return validate(RunConfig, merge(values, changes), "test")


def small_plan(folder: Path, **changes: Any) -> RunPlan:
    """The checked plan of a small run; splits the cohort when that was not done."""
    if not (folder / "splits.csv").is_file():
        split_cohort(folder)
    return plan_run(run_config(folder, **changes))


def train_all(plan: RunPlan, out: Path, **options: Any) -> Run:
    """Train every stage of a plan, as the command does."""
    for stage, part in plan.stages:
        train_run(part, out / stage, baseline=None if part.baseline is None else out / "baseline", **options)
    return open_run(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
