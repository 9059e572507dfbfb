"""Cross-validation: the test part stays sealed, runs repeat bit by bit, interrupted ones go on."""

from __future__ import annotations

import copy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mhim.training.crossval as crossval
from cohort_files import write_cohort
from mhim.artefacts import read_json, write_json
from mhim.bag import Bag, load_bag, save_bag
from mhim.errors import ArtefactError, CheckpointError, CohortError, FeatureError
from mhim.evaluation import write_metrics
from mhim.metrics import youden_threshold
from mhim.registry import load_plugin
from mhim.training.crossval import clear_run, missing_folds, plan_run, require_baseline, train_fold, train_run
from mhim.training.data import BagStore
from mhim.training.runs import Run, open_run
from small_runs import SMALL_MODEL, contents, small_plan, split_cohort, train_all


def fold_files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if Path(name).name in names}


@pytest.fixture
def small_cohort(tmp_path: Path) -> Path:
    """A folder with cohort, bags and splits of 12 cases in 2 folds."""
    write_cohort(tmp_path, n_cases=12)
    split_cohort(tmp_path)
    return tmp_path


def test_bags_of_the_test_part_are_not_opened_before_training_has_ended(
    small_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(small_cohort)
    opened: list[str] = []
    during: list[str] = []

    class Spy(BagStore):
        def features(self, slide_id: str) -> torch.Tensor:
            opened.append(slide_id)
            return super().features(slide_id)

        def expect(self, slide_id: str) -> None:
            opened.append(slide_id)

    def fit(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        during.extend(opened)
        return result

    real = crossval.fit
    monkeypatch.setattr(crossval, "BagStore", Spy)
    monkeypatch.setattr(crossval, "fit", fit)
    train_fold(plan, 0, small_cohort / "run", None)
    fold = plan.splits.folds[0]
    slides = {
        part: {row.slide_id for row in plan.cohort.of_cases(fold.part(part))} for part in ("train", "val", "test")
    }
    assert set(during) == slides["train"] | slides["val"]
    assert set(opened) - set(during) == slides["test"]


@pytest.mark.parametrize("method", ["supervised", "mhim-v1"])
def test_other_features_in_the_test_part_change_its_predictions_and_nothing_else(
    method: str, small_cohort: Path
) -> None:
    plan = small_plan(small_cohort, method=method)
    train_all(plan, small_cohort / "before")
    fold = plan.splits.folds[0]
    for row in plan.cohort.of_cases(fold.test):
        path = small_cohort / "features" / f"{row.slide_id}.h5"
        bag = load_bag(path)
        save_bag(path, Bag(row.slide_id, 100 - bag.features, bag.xy_px0, bag.attributes))
    for stage, part in plan.stages:
        start = None if part.baseline is None else small_cohort / "after" / "baseline"
        train_fold(part, 0, small_cohort / "after" / stage, start)
    sealed = ("model.safetensors", "history.csv")
    before = fold_files(small_cohort / "before", *sealed)
    after = fold_files(small_cohort / "after", *sealed)
    assert after == {name: before[name] for name in after}
    assert len(after) == 2 * len(list(plan.stages))
    tables = [pd.read_csv(small_cohort / run / "fold_0" / "predictions.csv") for run in ("before", "after")]
    old, new = (table.set_index(["part", "slide_id"]) for table in tables)
    assert old.loc["val"].equals(new.loc["val"])
    assert not old.loc["test"].equals(new.loc["test"])


def test_equal_plans_give_equal_bytes_and_another_seed_gives_others(small_cohort: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_metrics(train_all(small_plan(small_cohort, seed=seed, method="mhim-v1"), small_cohort / name))
    assert contents(small_cohort / "a") == contents(small_cohort / "b")
    assert not (
        set(fold_files(small_cohort / "a", "model.safetensors").values())
        & set(fold_files(small_cohort / "c", "model.safetensors").values())
    )


PLUGIN = """
from mhim.models import ABMIL, models

@models.register("plugged")
class Plugged(ABMIL):
    class Config(ABMIL.Config):
        extra: int = 1
"""


def test_folds_trained_side_by_side_are_byte_identical_also_with_a_plugin_model(small_cohort: Path) -> None:
    (small_cohort / "mine.py").write_text(PLUGIN)
    load_plugin(small_cohort / "mine.py")
    plan = small_plan(small_cohort, model={**SMALL_MODEL, "name": "plugged"})
    done: list[int] = []
    train_run(plan, small_cohort / "alone", workers=0)
    train_run(plan, small_cohort / "side", workers=2, on_fold=done.append)
    assert contents(small_cohort / "side") == contents(small_cohort / "alone")
    assert sorted(done) == [0, 1]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from small_runs import small_plan, train_all

def die(fold, epoch):
    seen.append(fold)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

seen = []
train_all(small_plan(Path(sys.argv[2]), method="mhim-v1"), Path(sys.argv[2]) / "killed", on_epoch=die)
"""


@pytest.mark.parametrize("epochs", [5, 8], ids=["in the baseline's second fold", "in the first fold of MHIM"])
def test_a_run_killed_in_the_middle_of_a_fold_and_repeated_is_byte_identical(epochs: int, small_cohort: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(small_cohort), str(epochs)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    left = (
        missing_folds(plan.baseline, small_cohort / "killed" / "baseline"),
        missing_folds(plan, small_cohort / "killed"),
    )
    assert left == (([1], [0, 1]) if epochs == 5 else ([], [0, 1]))
    write_metrics(train_all(plan, small_cohort / "killed"))
    write_metrics(train_all(plan, small_cohort / "whole"))
    assert contents(small_cohort / "killed") == contents(small_cohort / "whole")


def test_a_finished_run_is_not_trained_again(small_cohort: Path) -> None:
    plan = small_plan(small_cohort)
    train_all(plan, small_cohort / "run")
    before = {path: path.stat().st_mtime_ns for path in (small_cohort / "run").glob("fold_*/*")}
    trained: list[int] = []
    train_all(plan, small_cohort / "run", on_fold=trained.append)
    assert trained == []
    assert before == {path: path.stat().st_mtime_ns for path in (small_cohort / "run").glob("fold_*/*")}


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "optimisation": {"train": {"epochs": 4}},
    "model": {"model": {"gated": True}},
    "method": {"method": "mhim-v1"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_folder_of_another_configuration_is_refused_and_left_as_it_is(
    change: dict[str, Any], small_cohort: Path
) -> None:
    train_all(small_plan(small_cohort), small_cohort / "run")
    before = contents(small_cohort / "run")
    with pytest.raises(ArtefactError, match=r"run: holds a run of another configuration.*--overwrite"):
        train_run(small_plan(small_cohort, **change), small_cohort / "run")
    assert contents(small_cohort / "run") == before


def test_a_run_folder_of_other_data_or_other_folds_is_refused(small_cohort: Path) -> None:
    train_all(small_plan(small_cohort), small_cohort / "run")
    split_cohort(small_cohort, folds=3)
    with pytest.raises(ArtefactError, match="another configuration, cohort or split"):
        missing_folds(small_plan(small_cohort), small_cohort / "run")
    split_cohort(small_cohort, folds=2)
    write_cohort(small_cohort, n_cases=12, seed=1)
    with pytest.raises(ArtefactError, match="another configuration, cohort or split"):
        missing_folds(small_plan(small_cohort), small_cohort / "run")


def test_a_fold_of_another_run_is_not_taken_for_a_finished_one(small_cohort: Path) -> None:
    plan, other = small_plan(small_cohort), small_plan(small_cohort, seed=1)
    train_all(other, small_cohort / "run")
    (small_cohort / "run" / "run.json").unlink()
    with pytest.raises(ArtefactError, match="holds a run of another configuration"):
        missing_folds(plan, small_cohort / "run")


def test_device_threads_and_paths_are_no_part_of_the_identity(small_cohort: Path) -> None:
    first = small_plan(small_cohort)
    second = small_plan(small_cohort, train={"threads": 2, "device": "auto"})
    assert first.identity == second.identity
    (small_cohort / "features").rename(small_cohort / "moved")
    assert small_plan(small_cohort, features=str(small_cohort / "moved")).identity == first.identity


def test_clearing_removes_a_run_and_its_half_finished_baseline_and_nothing_else(small_cohort: Path) -> None:
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    out = small_cohort / "run"
    train_run(plan.baseline, out / "baseline")
    clear_run(out)
    assert not (out / "baseline").exists()
    (small_cohort / "mine").mkdir()
    (small_cohort / "mine" / "notes.txt").write_text("keep")
    clear_run(small_cohort / "mine")
    clear_run(small_cohort)
    assert (small_cohort / "mine" / "notes.txt").read_text() == "keep"


def test_the_right_baseline_gives_the_same_run_as_the_automatic_one(small_cohort: Path) -> None:
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    train_all(plan, small_cohort / "automatic")
    train_all(small_plan(small_cohort, method="supervised"), small_cohort / "plain")
    require_baseline(small_cohort / "plain", plan.baseline)
    train_run(plan, small_cohort / "given", baseline=small_cohort / "plain")
    assert contents(small_cohort / "automatic" / "baseline") == contents(small_cohort / "plain")
    given, automatic = contents(small_cohort / "given"), contents(small_cohort / "automatic")
    assert given == {name: automatic[name] for name in given}


BASELINES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "optimisation": {"train": {"lr": 2e-3}},
    "width": {"model": {"dim": 8}},
}


@pytest.mark.parametrize("change", BASELINES.values(), ids=BASELINES)
def test_a_baseline_of_another_is_refused(change: dict[str, Any], small_cohort: Path) -> None:
    train_all(small_plan(small_cohort, **change), small_cohort / "plain")
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    with pytest.raises(CheckpointError, match="plain: not the plain baseline of this cohort, splits, seed"):
        require_baseline(small_cohort / "plain", plan.baseline)


def test_a_baseline_of_other_folds_or_another_cohort_is_refused(small_cohort: Path) -> None:
    """Its teacher may have seen slides that are tested here."""
    train_all(small_plan(small_cohort), small_cohort / "plain")
    split_cohort(small_cohort, folds=3)
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    with pytest.raises(CheckpointError, match="may have seen the test slides"):
        require_baseline(small_cohort / "plain", plan.baseline)
    split_cohort(small_cohort)
    write_cohort(small_cohort, n_cases=12, seed=1)
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    with pytest.raises(CheckpointError, match="may have seen the test slides"):
        require_baseline(small_cohort / "plain", plan.baseline)


def test_a_baseline_that_is_mhim_itself_unfinished_or_absent_is_refused(small_cohort: Path) -> None:
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    run = train_all(plan, small_cohort / "mhim")
    with pytest.raises(CheckpointError, match="not the plain baseline"):
        require_baseline(run.path, plan.baseline)
    (run.path / "baseline" / "fold_1" / "fold.json").unlink()
    with pytest.raises(CheckpointError, match="folds are missing; finish that run first"):
        require_baseline(run.path / "baseline", plan.baseline)
    with pytest.raises(CheckpointError, match="not a run folder"):
        require_baseline(small_cohort, plan.baseline)


def _swapped_files(plain: Path, other: Path) -> None:
    files = [plain / f"fold_{fold}" / "model.safetensors" for fold in (0, 1)]
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)


def _another_seeds_file(plain: Path, other: Path) -> None:
    shutil.copy(other / "fold_1" / "model.safetensors", plain / "fold_1" / "model.safetensors")


def _another_seeds_folds_under_this_name(plain: Path, other: Path) -> None:
    for path in other.rglob("*"):
        if path.is_file() and path.name not in ("run.json", "config.yaml", "fold.json"):
            shutil.copy(path, plain / path.relative_to(other))


@pytest.mark.parametrize("smuggle", [_swapped_files, _another_seeds_file, _another_seeds_folds_under_this_name])
def test_a_teacher_smuggled_into_a_run_folder_is_refused(
    smuggle: Callable[[Path, Path], None], small_cohort: Path
) -> None:
    """A model file of another fold or seed, by --baseline or put into the run's own folder."""
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    train_all(plan, small_cohort / "own")
    shutil.copytree(small_cohort / "own" / "baseline", small_cohort / "plain")
    train_all(small_plan(small_cohort, seed=1), small_cohort / "other")
    require_baseline(small_cohort / "plain", plan.baseline)
    smuggle(small_cohort / "plain", small_cohort / "other")
    with pytest.raises(CheckpointError, match="may have seen the test slides"):
        require_baseline(small_cohort / "plain", plan.baseline)
    smuggle(small_cohort / "own" / "baseline", small_cohort / "other")
    for fold in (0, 1):
        shutil.rmtree(small_cohort / "own" / f"fold_{fold}")
    with pytest.raises(CheckpointError, match="may have seen the test slides"):
        train_run(plan, small_cohort / "own", baseline=small_cohort / "own" / "baseline")


def test_folds_that_changed_places_are_not_taken_for_finished_ones(small_cohort: Path) -> None:
    plan = small_plan(small_cohort)
    out = train_all(plan, small_cohort / "run").path
    for old, new in (("fold_0", "aside"), ("fold_1", "fold_0"), ("aside", "fold_1")):
        (out / old).rename(out / new)
    with pytest.raises(ArtefactError, match="holds a run of another configuration, cohort or split"):
        missing_folds(plan, out)


def test_missing_bags_may_take_a_whole_case_out_of_its_folds(small_cohort: Path) -> None:
    full = small_plan(small_cohort)
    gone = full.splits.folds[0].test[0]
    (small_cohort / "features" / f"s{gone[1:]}_0.h5").unlink()
    with pytest.raises(CohortError, match="1 of 12 slides"):
        small_plan(small_cohort)
    plan = small_plan(small_cohort, allow_missing=True)
    assert gone not in {case for fold in plan.splits.folds for case in (*fold.train, *fold.val, *fold.test)}
    run = train_all(plan, small_cohort / "run")
    assert sorted(run.test_predictions()["case_id"]) == sorted(set(full.cohort.case_labels()) - {gone})


def test_splits_of_another_cohort_are_refused_before_any_bag_is_read(small_cohort: Path) -> None:
    split = (small_cohort / "splits.csv").read_text()
    (small_cohort / "splits.csv").write_text(split.replace("c03,", "c99,"))
    with pytest.raises(CohortError, match=r"splits\.csv: case c99 is not in .*cohort\.csv"):
        small_plan(small_cohort)


def test_a_bag_with_nan_is_named_before_training(small_cohort: Path) -> None:
    import h5py

    with h5py.File(small_cohort / "features" / "s07_0.h5", "r+") as file:
        file["features"][0, 0] = np.nan  # pyright: ignore
    with pytest.raises(FeatureError, match=r"s07_0\.h5: 1 of \d+ instances hold NaN"):
        small_plan(small_cohort)


def test_training_a_fold_leaves_the_global_random_state_and_the_threads_as_they_were(small_cohort: Path) -> None:
    plan = small_plan(small_cohort, method="mhim-v1", train={"threads": 2})
    assert plan.baseline is not None
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train_run(plan.baseline, small_cohort / "baseline")
    train_fold(plan, 0, small_cohort / "run", small_cohort / "baseline")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """MHIM with its baseline on 24 cases of two slides, two folds, long enough to learn."""
    folder = tmp_path_factory.mktemp("learnt")
    write_cohort(folder, n_cases=24, slides_per_case=2)
    split_cohort(folder)
    training = {"epochs": 14, "lr": 5e-3}
    return train_all(small_plan(folder, method="mhim-v1", train=training), folder / "run")


@pytest.mark.parametrize("stage", ["", "baseline"], ids=["mhim", "supervised"])
def test_an_easy_cohort_is_learnt(stage: str, learnt: Run) -> None:
    run = open_run(learnt.path / stage)
    areas = [run.fold_info(fold)["test_auroc"] for fold in run.folds]
    assert np.mean(areas) > 0.9


def test_every_slide_is_tested_once_and_never_where_its_case_was_trained_or_validated(learnt: Run) -> None:
    tested = learnt.test_predictions()
    assert sorted(tested["slide_id"]) == sorted(f"s{case:02d}_{number}" for case in range(24) for number in (0, 1))
    plan = plan_run(learnt.config)
    for fold in plan.splits.folds:
        rows = tested.loc[tested["fold"] == fold.index]
        assert set(rows["case_id"]) == set(fold.test)
        assert set(learnt.predictions(fold.index).query("part == 'val'")["case_id"]) == set(fold.val)


def test_the_threshold_comes_from_validation_and_calls_the_test_slides(learnt: Run) -> None:
    for fold in learnt.folds:
        table = learnt.predictions(fold)
        val, test = (table.loc[table["part"] == part] for part in ("val", "test"))
        threshold = learnt.fold_info(fold)["threshold"]
        expected = youden_threshold((val["y_true"] == "tumour").to_numpy(dtype=np.int64), val["prob_tumour"].to_numpy())
        assert threshold == expected
        assert (table["threshold"] == threshold).all()
        assert ((test["prob_tumour"] >= threshold) == (test["y_pred"] == "tumour")).all()


def test_the_saved_model_of_the_best_epoch_gives_the_predictions(learnt: Run) -> None:
    for fold in learnt.folds:
        table, history, info = learnt.predictions(fold), learnt.history(fold), learnt.fold_info(fold)
        val = table.loc[table["part"] == "val"]
        found = roc_auc_score(val["y_true"] == "tumour", val["prob_tumour"])
        assert info["val_auroc"] == pytest.approx(found) == pytest.approx(history["val_auroc"].max())
        best = history.loc[history["val_auroc"] == history["val_auroc"].max(), "val_loss"].idxmin()
        assert info["best_epoch"] == best
        model = learnt.model(fold)
        row = table.iloc[-1]
        features = torch.from_numpy(load_bag(learnt.config.features / f"{row['slide_id']}.h5").features)
        with torch.inference_mode():
            assert float(model(features).probabilities[1]) == pytest.approx(row["prob_tumour"], abs=1e-7)


def test_the_deployed_model_of_mhim_is_the_plain_aggregator(learnt: Run) -> None:
    plain = open_run(learnt.path / "baseline").model(0)
    deployed = learnt.model(0)
    assert type(deployed) is type(plain)
    assert deployed.config == plain.config  # the same program on the same numbers: the same cost
    assert {name: value.shape for name, value in deployed.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert not torch.equal(deployed.state_dict()["classifier.weight"], plain.state_dict()["classifier.weight"])


def test_mhim_starts_from_its_own_folds_baseline(small_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(small_cohort, method="mhim-v1")
    assert plan.baseline is not None
    train_run(plan.baseline, small_cohort / "baseline")
    loaded: list[Path] = []
    real = crossval.load_model
    monkeypatch.setattr(crossval, "load_model", lambda path: loaded.append(path) or real(path))
    train_run(plan, small_cohort / "run", baseline=small_cohort / "baseline")
    assert loaded == [small_cohort / "baseline" / f"fold_{fold}" / "model.safetensors" for fold in (0, 1)]


def test_a_run_with_folds_missing_cannot_be_opened(small_cohort: Path) -> None:
    run = train_all(small_plan(small_cohort), small_cohort / "run")
    (run.path / "fold_1" / "fold.json").unlink()
    with pytest.raises(ArtefactError, match=r"only 1 of 2 folds are complete; run the same 'mhim train' again"):
        open_run(run.path)
    with pytest.raises(ArtefactError, match="not a run folder"):
        open_run(small_cohort)


def test_run_json_holds_no_path_and_says_what_chose_what(small_cohort: Path) -> None:
    run = train_all(small_plan(small_cohort), small_cohort / "run")
    info = copy.deepcopy(run.info)
    assert str(small_cohort) not in (run.path / "run.json").read_text()
    assert info["chosen_by"]["threshold"] == "validation Youden index"
    assert (info["n_slides"], info["n_cases"], info["n_folds"], info["in_dim"]) == (12, 12, 2, 6)
    assert info["classes"] == ["normal", "tumour"]


@pytest.mark.parametrize("word", ["NA", "None", "nan"])
def test_cases_and_classes_called_like_nothing_survive_a_run(word: str, small_cohort: Path) -> None:
    table = (small_cohort / "cohort.csv").read_text()
    (small_cohort / "cohort.csv").write_text(table.replace("normal", word).replace("c00", word))
    split_cohort(small_cohort)
    run = train_all(small_plan(small_cohort, train={"epochs": 1}), small_cohort / "run")
    assert word in set(run.test_predictions()["case_id"])
    assert set(run.test_predictions()["y_true"]) == {word, "tumour"}
    assert write_metrics(run)["classes"] == [word, "tumour"]


def test_probabilities_read_back_bit_equal(small_cohort: Path) -> None:
    run = train_all(small_plan(small_cohort, train={"epochs": 1}), small_cohort / "run")
    lines = (run.path / "predictions.csv").read_text().splitlines()
    column = lines[0].split(",").index("prob_tumour")
    written = [float(line.split(",")[column]) for line in lines[1:]]
    assert run.test_predictions()["prob_tumour"].tolist() == written


def test_a_foreign_run_json_is_refused(small_cohort: Path) -> None:
    write_json(small_cohort / "run" / "run.json", {"something": "else"})
    with pytest.raises(ArtefactError, match="holds a run of another"):
        missing_folds(small_plan(small_cohort), small_cohort / "run")
    assert read_json(small_cohort / "run" / "run.json") == {"something": "else"}


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "predictions.csv", "fold.json"])
def test_a_fold_that_lost_a_file_is_trained_again_to_the_same_bytes(name: str, small_cohort: Path) -> None:
    plan, out = small_plan(small_cohort), small_cohort / "run"
    train_all(plan, out)
    before = contents(out)
    (out / "fold_1" / name).unlink()
    assert missing_folds(plan, out) == [1]
    train_all(plan, out)
    assert contents(out) == before


def test_a_cut_off_marker_means_that_the_fold_is_not_done(small_cohort: Path) -> None:
    plan, out = small_plan(small_cohort), small_cohort / "run"
    train_all(plan, out)
    (out / "fold_0" / "fold.json").write_text('{"fold": ')
    assert missing_folds(plan, out) == [0]


def test_where_the_slides_lay_is_no_part_of_the_identity(small_cohort: Path) -> None:
    before = small_plan(small_cohort).identity
    for path in (small_cohort / "features").glob("*.h5"):
        bag = load_bag(path)
        save_bag(path, replace(bag, attributes=dict(bag.attributes) | {"slide_path": "/elsewhere/x.svs"}))
    assert small_plan(small_cohort).identity == before
