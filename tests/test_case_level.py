"""mhim evaluate --by-case: the slides of a case make one prediction; its threshold comes from validation cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohort_files import write_cohort
from mhim.case_level import Combine, by_case
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import ConfigError
from mhim.evaluation import fold_predictions, summarise
from mhim.metrics import auroc, youden_threshold
from mhim.training.runs import Run
from mhim.training.tasks import to_predictions
from small_runs import small_plan, train_all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two folds; case c01 has a slide that is normal, and cases have two slides."""
    folder = tmp_path_factory.mktemp("cases")
    table = write_cohort(folder, n_cases=16, slides_per_case=2)
    table.write_text(table.read_text().replace("s01_1,c01,tumour", "s01_1,c01,normal"))
    return train_all(small_plan(folder), folder / "run")


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_a_case_by_hand(run: Run, combine: Combine) -> None:
    slides, cases = run.test_predictions(), by_case(run, combine).test_predictions()
    assert list(cases["case_id"]) == list(dict.fromkeys(slides["case_id"]))
    assert (cases["n_slides"] == 2).all()
    for _, row in cases.iterrows():
        own = slides.loc[slides["case_id"] == row["case_id"]]
        expected = own["prob_tumour"].mean() if combine == "mean" else own["prob_tumour"].max()
        assert row["prob_tumour"] == pytest.approx(expected)
        assert row["prob_normal"] == pytest.approx(1 - expected)
        assert row["y_true"] == ("tumour" if "tumour" in set(own["y_true"]) else "normal")
        assert row["fold"] == own["fold"].iloc[0]
    assert cases.set_index("case_id").loc["c01", "y_true"] == "tumour"


def test_the_threshold_is_that_of_the_validation_cases(run: Run) -> None:
    cases = by_case(run, "mean")
    for fold in run.folds:
        table = cases.predictions(fold)
        val = to_predictions(table.loc[table["part"] == "val"], run.classes)
        threshold = youden_threshold(val.y_true, val.probabilities[:, 1])
        assert (table["threshold"] == threshold).all()
        np.testing.assert_array_equal(table["y_pred"] == "tumour", table["prob_tumour"] >= threshold)


def test_one_slide_a_case_changes_nothing(tmp_path: Path) -> None:
    write_cohort(tmp_path, n_cases=12)
    single = train_all(small_plan(tmp_path), tmp_path / "run")
    for plain, cases in zip(fold_predictions(single), fold_predictions(by_case(single, "mean")), strict=True):
        for name in ("case_id", "y_true", "y_pred", "probabilities"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(cases, name))


def test_everything_downstream_is_by_case(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["mhim", "evaluate", str(run.path), "--by-case", "mean", "--resamples", "100"])
    assert run_app(app) == 0
    assert "by case: mean" in capsys.readouterr().err
    metrics = json.loads((run.path / "metrics_by_case.json").read_text())
    assert (metrics["n_slides"], metrics["n_cases"]) == (32, 16)
    assert [entry["n_cases"] for entry in metrics["folds"]] == [8, 8]
    assert not (run.path / "metrics.json").exists()
    assert metrics["further"]["temperature"]["chosen_by"] == "validation log loss"
    cases = by_case(run, "mean")
    areas = [auroc(fold) for fold in fold_predictions(cases)]
    assert summarise([cases], 100)[0].estimates["auroc"].value == pytest.approx(np.mean(np.array(areas, dtype=float)))


def test_the_highest_slide_is_for_two_classes(run: Run) -> None:
    three = Run(run.path, run.config, run.info | {"classes": ["a", "b", "c"]})
    with pytest.raises(ConfigError, match="max is for two"):
        by_case(three, "max")
