"""Evaluation: metrics files repeat byte by byte, comparisons use the same draws and the same slides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cohort_files import write_cohort
from mhim.bag import Bag, save_bag
from mhim.errors import CohortError
from mhim.evaluation import (
    Estimate,
    evaluate_run,
    format_estimate,
    markdown_table,
    summarise,
    table_rows,
    write_metrics,
)
from mhim.metrics import METRICS
from mhim.training.runs import Run, open_run
from small_runs import small_plan, split_cohort, train_all

RESAMPLES = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A supervised run on 12 cases of two slides, two folds."""
    folder = tmp_path_factory.mktemp("trained")
    write_cohort(folder, n_cases=12, slides_per_case=2)
    return train_all(small_plan(folder, train={"lr": 5e-4, "epochs": 2}), folder / "run")


def copy_of(run: Run, folder: Path, method: str | None = None) -> Run:
    """The same run under another title."""
    shutil.copytree(run.path, folder)
    if method is not None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "method": method}))
    return open_run(folder)


def retitled(run: Run, folder: Path, seed: int) -> Run:
    """A run that counts as another seed of the same configuration, with noise on its predictions."""
    shutil.copytree(run.path, folder)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "identity": f"seed{seed}"}))
    table = pd.read_csv(folder / "predictions.csv")
    table["prob_tumour"] = np.random.default_rng(seed).permutation(table["prob_tumour"])
    table["prob_normal"] = 1 - table["prob_tumour"]
    table.to_csv(folder / "predictions.csv", index=False)
    return open_run(folder)


def test_metrics_are_written_twice_byte_by_byte(trained: Run) -> None:
    write_metrics(trained, RESAMPLES)
    first = (trained.path / "metrics.json").read_bytes()
    write_metrics(trained, RESAMPLES)
    assert (trained.path / "metrics.json").read_bytes() == first


def test_metrics_hold_no_path_and_no_time(trained: Run, tmp_path: Path) -> None:
    write_metrics(trained, RESAMPLES)
    moved = copy_of(trained, tmp_path / "elsewhere")
    write_metrics(moved, RESAMPLES)
    assert (moved.path / "metrics.json").read_bytes() == (trained.path / "metrics.json").read_bytes()
    assert str(trained.path.parent) not in (trained.path / "metrics.json").read_text()


def test_fold_mean_and_pooled_values_are_what_their_names_say(trained: Run) -> None:
    metrics = evaluate_run(trained, RESAMPLES)
    table = trained.test_predictions()
    areas = [
        roc_auc_score(part["y_true"] == "tumour", part["prob_tumour"]) for _, part in table.groupby("fold", sort=True)
    ]
    assert [fold["auroc"] for fold in metrics["folds"]] == pytest.approx(areas, abs=1e-6)
    assert metrics["fold_mean"]["auroc"]["value"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert metrics["fold_mean"]["auroc"]["std"] == pytest.approx(np.std(areas), abs=1e-6)
    everything = roc_auc_score(table["y_true"] == "tumour", table["prob_tumour"])
    assert metrics["pooled"]["auroc"]["value"] == pytest.approx(everything, abs=1e-6)
    assert (metrics["n_slides"], metrics["n_cases"]) == (24, 12)
    for name in METRICS:
        assert metrics["fold_mean"][name]["low"] <= metrics["fold_mean"][name]["high"]


def test_a_run_against_itself_differs_by_exactly_nothing(trained: Run, tmp_path: Path) -> None:
    twin = copy_of(trained, tmp_path / "twin", method="mhim-v1")
    first, second = summarise([trained, twin], RESAMPLES)
    assert (first.title, second.title) == ("abmil", "mhim-v1 (abmil)")
    assert first.difference == {}
    for name in METRICS:
        assert second.estimates[name] == first.estimates[name]
        assert second.difference[name] == Estimate(0.0, (0.0, 0.0))


def test_differences_are_to_the_first_row_with_its_sign(trained: Run, tmp_path: Path) -> None:
    worse = copy_of(trained, tmp_path / "worse", method="mhim-v1")
    table = pd.read_csv(worse.path / "predictions.csv")
    table["prob_tumour"] = 1 - table["prob_tumour"]
    table["prob_normal"] = 1 - table["prob_tumour"]
    table.to_csv(worse.path / "predictions.csv", index=False)
    first, second = summarise([trained, worse], RESAMPLES)
    area = first.estimates["auroc"].value
    assert area is not None
    assert second.difference["auroc"].value == pytest.approx(1 - 2 * area)
    turned = summarise([worse, trained], RESAMPLES)[1]
    assert turned.difference["auroc"].value == pytest.approx(2 * area - 1)
    low, high = second.difference["auroc"].interval or (0, 0)
    assert turned.difference["auroc"].interval == pytest.approx((-high, -low))


def test_seeds_of_one_configuration_are_one_row(trained: Run, tmp_path: Path) -> None:
    second = retitled(trained, tmp_path / "second", 1)
    (row,) = summarise([trained, second], RESAMPLES)
    areas = [summarise([run], RESAMPLES)[0].estimates["auroc"].value for run in (trained, second)]
    assert row.n_folds == 4
    assert row.estimates["auroc"].value == pytest.approx(np.mean(areas))  # pyright: ignore
    assert row.run_std["auroc"] == pytest.approx(np.std(areas))  # pyright: ignore
    assert row.runs == (trained.path, second.path)


def test_one_run_has_no_spread_over_runs(trained: Run) -> None:
    assert summarise([trained], RESAMPLES)[0].run_std["auroc"] is None


def test_another_option_of_the_same_model_is_no_seed_of_it(trained: Run, tmp_path: Path) -> None:
    """Both are called abmil; averaging them would hide the comparison."""
    gated = copy_of(trained, tmp_path / "gated")
    config = yaml.safe_load((gated.path / "config.yaml").read_text())
    config["model"]["gated"] = True
    (gated.path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = summarise([trained, open_run(gated.path)], RESAMPLES)
    assert [row.title for row in rows] == ["abmil, run", "abmil, gated"]


def test_the_same_run_given_twice_is_refused(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="is the same run as .*run; give it once"):
        summarise([trained, copy_of(trained, tmp_path / "copy")], RESAMPLES)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("s03_1,c03,tumour", "s03_1,c99,tumour", "tested other slides"),
        ("s03_1,c03,tumour", "s99_1,c03,tumour", "tested other slides"),
        ("s03_1,c03,tumour", "s03_1,c03,normal", "tested other slides than .* or with other labels"),
    ],
    ids=["other case", "other slide", "other label"],
)
def test_runs_over_other_slides_or_labels_are_refused(
    old: str, new: str, fault: str, trained: Run, tmp_path: Path
) -> None:
    other = copy_of(trained, tmp_path / "other", method="mhim-v1")
    text = (other.path / "predictions.csv").read_text()
    assert old in text
    (other.path / "predictions.csv").write_text(text.replace(old, new))
    with pytest.raises(CohortError, match=fault):
        summarise([trained, other], RESAMPLES)


def test_runs_with_other_classes_are_refused(trained: Run, tmp_path: Path) -> None:
    other = copy_of(trained, tmp_path / "other", method="mhim-v1")
    info = json.loads((other.path / "run.json").read_text())
    (other.path / "run.json").write_text(json.dumps({**info, "classes": ["tumour", "normal"]}))
    with pytest.raises(CohortError, match="has other classes"):
        summarise([trained, open_run(other.path)], RESAMPLES)


def test_three_classes_go_from_cohort_to_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["slide_id,case_id,label"]
    for case in range(18):
        features = rng.normal(size=(15, 4)).astype(np.float32)
        features[:5, case % 3] += 4
        save_bag(tmp_path / "features" / f"s{case}.h5", Bag(f"s{case}", features))
        lines.append(f"s{case},c{case},grade {(2, 10, 3)[case % 3]}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    split_cohort(tmp_path)
    run = train_all(small_plan(tmp_path, method="mhim-v1", train={"epochs": 8, "lr": 1e-2}), tmp_path / "run")
    assert run.classes == ("grade 10", "grade 2", "grade 3")
    table = run.test_predictions()
    probabilities = table[[f"prob_{name}" for name in run.classes]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert table["threshold"].isna().all()
    assert [run.classes[index] for index in probabilities.argmax(axis=1)] == table["y_pred"].tolist()
    assert all(run.fold_info(fold)["threshold"] is None for fold in run.folds)
    metrics = write_metrics(run, RESAMPLES)
    assert metrics["fold_mean"]["auroc"]["value"] > 0.7
    assert all(metrics["pooled"][name]["value"] is not None for name in METRICS)


@pytest.mark.parametrize(
    ("estimate", "sign", "text"),
    [
        (Estimate(0.9123, (0.85, 0.961)), False, "0.912 [0.850, 0.961]"),
        (Estimate(0.0123, (-0.05, 0.061)), True, "+0.012 [-0.050, +0.061]"),
        (Estimate(0.5, None), False, "0.500"),
        (Estimate(None, None), False, "-"),
        (None, True, "-"),
    ],
)
def test_an_estimate_is_written_with_its_interval(estimate: Estimate | None, sign: bool, text: str) -> None:
    assert format_estimate(estimate, sign=sign) == text


def test_the_tables_hold_one_row_per_configuration(trained: Run, tmp_path: Path) -> None:
    summaries = summarise([trained, copy_of(trained, tmp_path / "twin", method="mhim-v1")], RESAMPLES)
    header, rows = table_rows(summaries)
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[0][-1] == "-"
    assert rows[1][-1] == "+0.000 [+0.000, +0.000]"
    lines = markdown_table(summaries).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
