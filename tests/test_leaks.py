"""Attempts to leak test slides into what is learned or chosen; each one fails."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cohort_files import write_cohort
from mhim.bag import Bag, load_bag, save_bag
from mhim.errors import CohortError, ConfigError
from mhim.evaluation import evaluate_run, summarise
from mhim.splits import Fold, Splits, TestSelectedFold, read_splits, write_splits
from mhim.training import crossval
from mhim.training.fit import fit
from mhim.training.runs import Run, open_run
from small_runs import small_plan, train_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("leaks")
    write_cohort(made, n_cases=12, slides_per_case=2)
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Run:
    return train_all(small_plan(folder, train={"lr": 5e-4, "epochs": 2, "standardise": True}), folder / "run")


def test_the_trainer_has_no_place_for_a_test_loader() -> None:
    names = set(inspect.signature(fit).parameters)
    assert {"train", "val"} <= names
    assert not [name for name in names if "test" in name]


def test_the_trainer_is_given_no_test_slide(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the trainer and the scaler of features are handed holds no case of the test part, nor a way to it."""
    plan = small_plan(folder, train={"epochs": 1, "standardise": True})
    seen: list[set[str]] = []
    original, statistics = crossval.fit, crossval.feature_statistics

    def watched_fit(method: object, train: object, val: object, *rest: object, **more: object) -> object:
        seen.append({row.case_id for bags in (train, val) for row in bags.rows})  # pyright: ignore
        return original(method, train, val, *rest, **more)  # pyright: ignore

    def watched_statistics(bags: object) -> object:
        seen.append({row.case_id for row in bags.rows})  # pyright: ignore
        return statistics(bags)  # pyright: ignore

    monkeypatch.setattr(crossval, "fit", watched_fit)
    monkeypatch.setattr(crossval, "feature_statistics", watched_statistics)
    train_all(plan, tmp_path / "run")
    scaled, fitted = seen[0::2], seen[1::2]
    assert len(fitted) == len(plan.splits.folds)
    for fold, in_scaler, in_fit in zip(plan.splits.folds, scaled, fitted, strict=True):
        assert in_scaler == set(fold.train)
        assert in_fit == set(fold.train) | set(fold.val)
        assert not in_fit & set(fold.test)


def test_other_test_slides_change_no_weight_no_epoch_and_no_threshold(
    folder: Path, trained: Run, tmp_path: Path
) -> None:
    """Replace the features of fold 0's test slides by noise: the fold's model and choices stay, bit for bit."""
    tested = set(trained.predictions(0).query("part == 'test'")["slide_id"])
    (tmp_path / "features").mkdir()
    rng = np.random.default_rng(0)
    for path in (folder / "features").glob("*.h5"):
        bag = load_bag(path)
        noise = rng.normal(size=bag.features.shape).astype(bag.features.dtype) * 9
        save_bag(
            tmp_path / "features" / path.name,
            Bag(bag.slide_id, noise if bag.slide_id in tested else bag.features, bag.xy_px0, bag.attributes),
        )
    for name in ("cohort.csv", "splits.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    again = train_all(small_plan(tmp_path, train={"lr": 5e-4, "epochs": 2, "standardise": True}), tmp_path / "run")
    ours, theirs = trained.model(0).state_dict(), again.model(0).state_dict()
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    for key in ("best_epoch", "threshold", "val_auroc"):
        assert again.fold_info(0)[key] == trained.fold_info(0)[key]
    assert not again.predictions(0).equals(trained.predictions(0))


def test_a_threshold_or_temperature_from_test_cannot_be_told_from_labels(trained: Run, tmp_path: Path) -> None:
    """Turn all test labels round: every choice stays where validation put it."""
    import shutil

    shutil.copytree(trained.path, tmp_path / "run")
    for path in (tmp_path / "run" / "predictions.csv", *(tmp_path / "run").glob("fold_*/predictions.csv")):
        table = pd.read_csv(path, dtype=str)
        test = table["part"] == "test" if "part" in table else pd.Series(data=True, index=table.index)
        table.loc[test, "y_true"] = table.loc[test, "y_true"].map({"normal": "tumour", "tumour": "normal"})
        table.to_csv(path, index=False)
    before, after = (evaluate_run(run, 100)["further"] for run in (trained, open_run(tmp_path / "run")))
    assert after["temperature"]["folds"] == before["temperature"]["folds"]
    for rule, said in before["operating_points"].items():
        assert after["operating_points"][rule]["thresholds"] == said["thresholds"]
    assert after["metrics"]["log_loss"] != before["metrics"]["log_loss"]


def test_a_case_in_two_parts_or_tested_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="case b is in more than one part"):
        Fold(0, ("a", "b"), ("c",), ("b",))
    with pytest.raises(CohortError, match="case c is in the test part of more than one fold"):
        Splits((Fold(0, ("a",), ("b",), ("c",)), Fold(1, ("b",), ("a",), ("c",))))
    with pytest.raises(CohortError, match="part is empty"):
        Fold(0, ("a",), (), ("c",))
    (tmp_path / "splits.csv").write_text("case_id,fold_0\na,train\na,test\nb,val\n")
    with pytest.raises(CohortError, match="case a appears more than once"):
        read_splits(tmp_path / "splits.csv")


def test_folds_that_validate_on_test_train_only_under_their_protocols_name(folder: Path, tmp_path: Path) -> None:
    for name in ("cohort.csv",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    folds = read_splits(folder / "splits.csv").folds
    leaky = tuple(
        TestSelectedFold(fold.index, tuple(sorted((*fold.train, *fold.val))), fold.test, fold.test) for fold in folds
    )
    write_splits(tmp_path / "splits.csv", Splits(leaky))
    config = small_plan(folder).config.model_copy(update={"splits": tmp_path / "splits.csv"})
    with pytest.raises(CohortError, match="fold 0 validates on its test part, which protocol honest does not"):
        crossval.plan_run(config)
    published = config.model_copy(update={"protocol": "iccv2023-camelyon16"})
    plan = crossval.plan_run(published)
    said = crossval.describe(plan)
    assert said["protocol"] == "iccv2023-camelyon16"
    assert said["chosen_by"]["epoch"] == "TEST auroc"  # pyright: ignore
    honest = published.model_copy(update={"splits": folder / "splits.csv"})
    with pytest.raises(
        CohortError, match="has a validation part, but protocol iccv2023-camelyon16 chooses on the test"
    ):
        crossval.plan_run(honest)
    with pytest.raises(ConfigError, match="ignores the first 2 of 20 epochs"):
        type(config).model_validate(config.model_dump() | {"protocol": "iccv2023-tcga", "train": {"epochs": 20}})


def test_a_published_run_shares_no_table_with_an_honest_one(trained: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained.path, tmp_path / "published")
    config = yaml.safe_load((tmp_path / "published" / "config.yaml").read_text())
    (tmp_path / "published" / "config.yaml").write_text(yaml.safe_dump(config | {"protocol": "iccv2023-camelyon16"}))
    with pytest.raises(CohortError, match="protocol iccv2023-camelyon16, but .* has honest"):
        summarise([trained, open_run(tmp_path / "published")], 100)
    metrics = evaluate_run(open_run(tmp_path / "published"), 100)
    assert metrics["protocol"] == "iccv2023-camelyon16"
    assert "temperature" not in metrics["further"]  # nothing honest is left to choose one
    json.dumps(metrics, allow_nan=False)
