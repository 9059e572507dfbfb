"""The teachers that a run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cohort_files import write_cohort
from mhim.checkpoint import load_model, read_metadata
from mhim.training.snapshots import MOMENTS, teacher_file
from small_runs import SMALL_TRAINING, contents, small_plan, train_all

TRAINING = {**SMALL_TRAINING, "epochs": 6, "min_epochs": 6}
METHOD = {"name": "mhim-v1", "momentum": 0.9}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    write_cohort(folder, n_cases=16)
    train_all(small_plan(folder, method=METHOD, train=TRAINING), folder / "run")
    return folder


def test_the_teacher_starts_as_the_baseline_and_moves(run_folder: Path):
    for fold in ("fold_0", "fold_1"):
        here = run_folder / "run" / fold
        assert sorted(path.stem for path in here.glob("teacher_*")) == sorted(f"teacher_{m}" for m in MOMENTS)
        start = load_file(teacher_file(here, "start"))
        baseline = load_file(run_folder / "run" / "baseline" / fold / "model.safetensors")
        assert start.keys() == baseline.keys()
        for name, tensor in start.items():
            torch.testing.assert_close(tensor, baseline[name], rtol=0, atol=0)
        last = load_file(teacher_file(here, "last"))
        assert any(not torch.equal(last[name], start[name]) for name in start)
        done = {moment: int(read_metadata(teacher_file(here, moment))["epochs_done"]) for moment in MOMENTS}
        assert (done["start"], done["middle"], done["last"]) == (0, 3, 6)
        assert 1 <= done["best"] <= 6
        assert load_model(teacher_file(here, "last")).n_classes == 2


def test_keeping_teachers_changes_nothing_else(run_folder: Path, tmp_path: Path):
    write_cohort(tmp_path, n_cases=16)
    plan = small_plan(tmp_path, method=METHOD, train={**TRAINING, "keep_teachers": False})
    train_all(plan, tmp_path / "run")
    kept, without = contents(run_folder / "run"), contents(tmp_path / "run")
    assert not [name for name in without if "teacher" in name]
    same = [name for name in without if not name.endswith(("config.yaml", "data.json"))]
    assert {name for name in kept if "teacher" not in name} == set(without)
    for name in same:
        assert kept[name] == without[name], name
    assert not list((run_folder / "run" / "baseline").rglob("teacher_*"))
