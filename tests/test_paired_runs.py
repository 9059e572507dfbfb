"""mhim evaluate --compare: runs in pairs over folds and seeds, each question with its own interval and p."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score

from cohort_files import write_cohort
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import CohortError, ConfigError
from mhim.evaluation import summarise
from mhim.paired_runs import compare_summaries, paired_notes, paired_rows
from mhim.training.runs import Run, open_run
from small_runs import SMALL_MODEL, SMALL_TRAINING, small_plan, train_all


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two seeds of AB-MIL and of mean pooling, on the same two folds."""
    folder = tmp_path_factory.mktemp("paired")
    write_cohort(folder, n_cases=16)
    found = {}
    for seed in (0, 1):
        for name, model in (("abmil", SMALL_MODEL), ("mean", "mean")):
            plan = small_plan(folder, model=model, seed=seed, train=SMALL_TRAINING | {"epochs": 2})
            found[f"{name}_{seed}"] = train_all(plan, folder / f"{name}_{seed}")
    return found


def by_hand(run: Run) -> list[float]:
    """AUROC of each fold, from the table of predictions."""
    groups = run.test_predictions().groupby("fold", sort=True)
    return [float(roc_auc_score(part["y_true"] == "tumour", part["prob_tumour"])) for _, part in groups]


def test_pairs_are_fold_by_fold_and_seed_by_seed(runs: dict[str, Run]) -> None:
    given = [runs[name] for name in ("mean_1", "mean_0", "abmil_0", "abmil_1")]  # the order of seeds does not matter
    summaries = summarise(given, 200)
    (pair,) = compare_summaries(given, summaries, 200)
    expected = np.concatenate([np.subtract(by_hand(runs[f"abmil_{s}"]), by_hand(runs[f"mean_{s}"])) for s in (0, 1)])
    assert pair.per_part == pytest.approx(expected.tolist())
    assert pair.difference == pytest.approx(expected.mean())
    assert pair.bootstrap == summaries[1].difference["auroc"].interval  # the same draws as the table above it
    facts = [run.fold_info(fold) for run in given[:2] for fold in run.folds]
    ratio = np.mean([each["n_test"] / each["n_train"] for each in facts])
    t = expected.mean() / (expected.std(ddof=1) * np.sqrt(1 / 4 + ratio))
    assert pair.p_value == pytest.approx(2 * student_t.sf(abs(t), 3))
    assert (pair.holm_p, pair.bootstrap_holm_p) == (pair.p_value, pair.bootstrap_p)  # one comparison


def test_an_interval_and_its_p_answer_one_question(runs: dict[str, Run]) -> None:
    given = list(runs.values())
    summaries = summarise(given, 500)
    pairs = compare_summaries(given, summaries, 500)
    for pair in pairs:
        for interval, p in (
            (pair.corrected_t and pair.corrected_t.interval, pair.p_value),
            (pair.delong and pair.delong.interval, pair.delong and pair.delong.p_value),
        ):
            assert interval is not None
            assert p is not None
            assert (p < 0.05) == (not interval[0] <= 0 <= interval[1])
    rows = paired_rows(summaries, pairs)
    assert [row[2].split("?")[0] for row in rows] == ["other patients", "other patients", "other training sets"]
    assert all(row[3].startswith(f"{pairs[0].difference:+.3f}") for row in rows)
    assert "may disagree" in paired_notes(summaries, pairs, 500)[0]


def test_what_cannot_be_paired(runs: dict[str, Run], tmp_path: Path) -> None:
    def compare(*names: str) -> None:
        given = [runs[name] for name in names]
        compare_summaries(given, summarise(given, 100), 100)

    with pytest.raises(ConfigError, match="abmil has seed 1, but mean seed 0"):
        compare("mean_0", "abmil_1")
    with pytest.raises(ConfigError, match="are of one configuration"):
        compare("mean_0", "mean_1")
    shutil.copytree(runs["abmil_0"].path, tmp_path / "run")
    for path in (tmp_path / "run").rglob("predictions.csv"):  # the same slides are tested, but in other folds
        table = pd.read_csv(path, dtype=str)
        table["fold"] = (1 - table["fold"].astype(int)).astype(str)
        table.to_csv(path, index=False)
    given = [runs["mean_0"], open_run(tmp_path / "run")]
    with pytest.raises(CohortError, match="against .*: part 0 holds other slides"):
        compare_summaries(given, summarise(given, 100), 100)


def test_the_command(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    paths = {name: run.path for name, run in runs.items()}
    page = tmp_path / "table.md"
    given = ["mhim", "evaluate", paths["abmil_0"], paths["abmil_1"], "--compare", paths["mean_0"]]
    monkeypatch.setattr("sys.argv", list(map(str, [*given, "--resamples", 100])))
    assert run_app(app) == 1
    assert "needs the runs of equal seeds" in " ".join(capsys.readouterr().err.split())
    given += ["--compare", paths["mean_1"], "--resamples", 100, "--markdown", page]
    monkeypatch.setattr("sys.argv", list(map(str, given)))
    assert run_app(app) == 0
    text = page.read_text()
    assert "| abmil | mean | other patients? case bootstrap |" in text
    assert "other training sets? corrected t-test, 3 degrees" in text
    assert json.loads((paths["mean_0"] / "metrics.json").read_text())["protocol"] == "honest"
