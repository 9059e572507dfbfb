"""mhim reproduce: equal bit for bit, or what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import ArtefactError, ConfigError
from mhim.reproduce import compare_runs, plan_again, train_again, what_changed
from mhim.training.runs import Run
from small_runs import small_plan, train_all


@pytest.fixture
def run(cohort_folder: Path) -> Run:
    return train_all(small_plan(cohort_folder, train={"epochs": 2}), cohort_folder / "run")


def test_a_two_stage_run_comes_out_the_same_bit_for_bit(cohort_folder: Path) -> None:
    small = {"method": "mhim-v1", "train": {"epochs": 2}}
    first = train_all(small_plan(cohort_folder, **small), cohort_folder / "mhim")
    opened, plan = plan_again(first.path, {})
    assert what_changed(opened, plan) == []
    again = train_again(opened, plan, cohort_folder / "again")
    assert compare_runs(opened, again) == []
    for fold in first.folds:
        for name in ("model.safetensors", "predictions.csv", "history.csv", "fold.json"):
            assert (first.fold_path(fold) / name).read_bytes() == (again.fold_path(fold) / name).read_bytes()
    with pytest.raises(ArtefactError, match="is the run itself"):
        train_again(opened, plan, first.path)


def test_what_changed_in_data_and_environment_is_named(run: Run, cohort_folder: Path) -> None:
    info = json.loads((run.fold_path(0) / "fold.json").read_text())
    info["environment"]["libraries"]["torch"] = "0.1"
    info["environment"]["code"] = "0" * 16
    (run.fold_path(0) / "fold.json").write_text(json.dumps(info))
    with h5py.File(cohort_folder / "features" / "s03_0.h5", "a") as file:
        dataset = file["features"]
        assert isinstance(dataset, h5py.Dataset)
        dataset[0, 0] += np.float16(1)
    table = cohort_folder / "cohort.csv"
    table.write_text(table.read_text().replace("s04_0,c04,normal", "s04_0,c04,tumour"))
    said = [f"{each.part}: {each.sentence}" for each in what_changed(*plan_again(run.path, {}))]
    assert "data: 1 slides have another label (s04_0)" in said
    assert "data: 1 slides have other features (s03_0)" in said
    assert any(text.startswith("environment: libraries.torch was 0.1, is ") for text in said)
    assert any(text.startswith("environment: code was 0000000000000000, is ") for text in said)
    assert len(said) == 4


def test_runs_of_other_seeds_differ_in_weights_and_predictions(run: Run, cohort_folder: Path) -> None:
    other = train_all(small_plan(cohort_folder, seed=1, train={"epochs": 2}), cohort_folder / "other")
    found = compare_runs(run, other)
    assert {each.part for each in found} == {"weights", "predictions", "history"}
    assert "fold 0: weights differ by up to" in found[0].sentence


def test_an_old_run_and_moved_data(run: Run, cohort_folder: Path) -> None:
    (run.path / "data.json").unlink()
    for fold in run.folds:
        path = run.fold_path(fold) / "fold.json"
        info = json.loads(path.read_text())
        del info["environment"]
        path.write_text(json.dumps(info))
    said = [each.sentence for each in what_changed(*plan_again(run.path, {}))]
    assert said == ["the run does not say what it was made with (it is older than that record)"]
    (cohort_folder / "features").rename(cohort_folder / "moved")
    with pytest.raises(ConfigError, match="say where it is now with --features"):
        plan_again(run.path, {})
    plan_again(run.path, {"features": cohort_folder / "moved"})


def test_the_command(run: Run, cohort_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def mhim(*arguments: object) -> int:
        given = ["mhim", "reproduce", run.path, "-o", cohort_folder / "again", *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, given)))
        return run_app(app)

    assert mhim("--dry-run") == 0
    assert not (cohort_folder / "again").exists()
    assert mhim() == 0
    assert "equal: weights, predictions and histories of 2 folds, bit for bit" in capsys.readouterr().out
    table = run.fold_path(1) / "predictions.csv"
    table.write_text(table.read_text().replace("0.", "0.0", 1))
    assert mhim() == 1
    assert "predictions: fold 1: probabilities differ by up to" in capsys.readouterr().out
