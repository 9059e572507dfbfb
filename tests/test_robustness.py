"""mhim robustness: what is removed and added, by hand; runs scored again on their own test slides."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mhim.bag import Bag, load_bag, save_bag
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.cohort import read_cohort
from mhim.config import validate
from mhim.errors import ArtefactError, CohortError, ConfigError
from mhim.models import models
from mhim.robustness import (
    Condition,
    RobustnessConfig,
    attended,
    csv_table,
    disturbed_probabilities,
    robustness,
    with_noise,
    without_most_attended,
)
from mhim.training.data import BagSet, BagStore
from mhim.training.runs import open_run
from small_runs import small_plan, train_all


def config(**values: Any) -> RobustnessConfig:
    return validate(RobustnessConfig, {"resamples": 100, **values}, "test")


def test_the_most_attended_go_and_the_order_stays() -> None:
    features = torch.arange(6.0)[:, None]
    attention = torch.tensor([0.1, 0.3, 0.05, 0.3, 0.2, 0.05])
    assert without_most_attended(features, attention, 0.01)[:, 0].tolist() == [0, 2, 3, 4, 5]
    assert without_most_attended(features, attention, 0.5)[:, 0].tolist() == [0, 2, 5]
    assert without_most_attended(features, attention, 0.99)[:, 0].tolist() == [5]
    assert without_most_attended(features[:1], attention[:1], 0.5).tolist() == [[0.0]]


def test_where_the_attention_is_equal_the_score_decides() -> None:
    torch.manual_seed(0)
    features = torch.randn(9, 5)
    for name in ("mean", "max"):
        output = models.build(models.parse({"name": name, "dim": 8}), 5, 2).eval()(features)
        ranks, scores, attention = attended(output), output.salience[0], output.attention.mean(dim=0)
        for one in range(9):
            for other in range(9):
                if (
                    attention[one] > attention[other]
                    or attention[one] == attention[other]
                    and scores[one] > scores[other]
                ):
                    assert ranks[one] > ranks[other]


def test_noise_is_scaled_per_feature_and_the_same_for_every_run_and_level() -> None:
    features, scale = torch.zeros(4000, 2), torch.tensor([1.0, 10.0])
    small, large = (with_noise(features, scale, level, "slide", 0) for level in (0.5, 1.0))
    torch.testing.assert_close(2 * small, large)
    assert large.std(dim=0).tolist() == pytest.approx([1, 10], rel=0.05)
    assert torch.equal(small, with_noise(features, scale, 0.5, "slide", 0))
    assert not torch.equal(small, with_noise(features, scale, 0.5, "other", 0))
    assert not torch.equal(small, with_noise(features, scale, 0.5, "slide", 1))


@pytest.mark.parametrize("values", [{"remove": [1.0]}, {"remove": [0]}, {"noise": [-1]}, {"noise": [1, 1]}])
def test_disturbances_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config(**values)


def test_undisturbed_is_the_runs_own_score_and_seeds_make_one_row(cohort_folder: Path, tmp_path: Path) -> None:
    plain = [train_all(small_plan(cohort_folder, seed=seed), tmp_path / f"plain_{seed}") for seed in (0, 1)]
    other = train_all(small_plan(cohort_folder, model={"gated": True}), tmp_path / "gated")
    results = robustness([*plain, other], config(remove=[0.2, 0.9], noise=[100.0]))
    table = csv_table(results).set_index(["model", "condition"])
    assert len(table) == 2 * 4
    first, second = dict.fromkeys(held.title for held in results)
    undisturbed = table.loc[(first, "undisturbed")]
    folds = [run.fold_info(fold)["test_auroc"] for run in plain for fold in run.folds]
    assert undisturbed["auroc"] == pytest.approx(np.mean(folds), abs=1e-9)
    assert np.isnan(undisturbed["change"])
    assert np.isnan(undisturbed["difference"])
    tests = pd.concat([run.test_predictions() for run in plain])
    positive = tests.loc[tests["y_true"] == "tumour", "prob_tumour"].mean()
    assert undisturbed["mean_positive_probability"] == pytest.approx(positive, abs=1e-6)
    for title in (first, second):
        whole = table.loc[(title, "undisturbed"), "auroc"]
        for name in ("without the top 20 %", "without the top 90 %", "noise of 100 SD"):
            row = table.loc[(title, name)]
            assert row["change"] == pytest.approx(row["auroc"] - whole, abs=1e-12)
            gap = row["auroc"] - table.loc[(first, name), "auroc"]
            assert np.isnan(row["difference"]) if title == first else row["difference"] == pytest.approx(gap, abs=1e-12)


def test_a_run_that_knows_the_tumour_loses_it_with_the_tumour(cohort_folder: Path, tmp_path: Path) -> None:
    """Trained well, then without the most attended half, the slides look alike."""
    training = {"epochs": 25, "lr": 5e-3}
    run = train_all(small_plan(cohort_folder, train=training), tmp_path / "run")
    whole, half = robustness([run], config(remove=[0.5], noise=[]))
    assert whole.auroc.value is not None
    assert whole.auroc.value > 0.9
    assert half.positive < whole.positive
    assert half.condition == Condition(remove=0.5)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "dsmil", "dim": 16, "query_dim": 8},
        {"name": "transmil", "dim": 16, "heads": 2, "landmarks": 4},
        {"name": "mean", "dim": 16},
    ],
    ids=lambda model: model["name"],
)
def test_mhim_around_every_kind_of_attention_is_disturbed(
    model: dict[str, Any], cohort_folder: Path, tmp_path: Path
) -> None:
    """Rows per class, rows per head that may be negative: the top of their mean goes; all equal: the top score."""
    run = train_all(small_plan(cohort_folder, model=model, method="mhim-v1"), tmp_path / "run")
    plain = open_run(run.path / "baseline")
    results = robustness([plain, run], config(remove=[0.3], noise=[0.5]))
    assert [held.title for held in results[::3]] == [plain.config.title, run.config.title]
    for each, held in ((plain, results[0]), (run, results[3])):
        folds = [each.fold_info(fold)["test_auroc"] for fold in each.folds]
        assert held.auroc.value == pytest.approx(np.mean(folds), abs=1e-9)
    name, fold = run.test_predictions().loc[0, ["slide_id", "fold"]]
    features = torch.from_numpy(load_bag(cohort_folder / "features" / f"{name}.h5").features)
    deployed = run.model(int(fold))
    with torch.no_grad():
        output = deployed(features)
        scores = output.salience if model["name"] == "mean" else output.attention
        left = scores.mean(dim=0).argsort()[: len(features) - math.ceil(len(features) * 0.3)].sort().values
        expected = deployed(features[left]).probabilities
    bags = [Condition(remove=0.3)]
    store = BagStore(run.config.features, read_cohort(run.config.cohort))
    chosen = BagSet(store, tuple(row for row in store.cohort if row.slide_id == name))
    found = disturbed_probabilities(deployed, chosen, bags, 0)[bags[0]][0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_other_bags_and_other_slides_are_refused(cohort_folder: Path, tmp_path: Path) -> None:
    run = train_all(small_plan(cohort_folder), tmp_path / "run")
    shutil.copytree(cohort_folder / "features", tmp_path / "changed")
    bag = load_bag(tmp_path / "changed" / "s01_0.h5")
    save_bag(tmp_path / "changed" / "s01_0.h5", Bag(bag.slide_id, bag.features + 5, bag.xy_px0, bag.attributes))
    with pytest.raises(ArtefactError, match="do not give the run's predictions"):
        robustness([run], config(features=tmp_path / "changed"))
    lines = (cohort_folder / "cohort.csv").read_text().splitlines()
    (cohort_folder / "cohort.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ArtefactError, match="no longer lists"):
        robustness([run], config())
    with pytest.raises(CohortError, match="is the same run"):
        robustness([run, run], config())


def test_from_the_command_line(
    cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_all(small_plan(cohort_folder), tmp_path / "run")

    def mhim(*arguments: str) -> tuple[int, str]:
        given = ["mhim", "robustness", str(tmp_path / "run"), "-o", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", given)
        code = run_app(app)
        return code, capsys.readouterr().err

    assert mhim("--dry-run")[0] == 0
    assert not (tmp_path / "out").exists()
    assert mhim("--remove", "0.1", "--noise", "0.5", "--resamples", "100")[0] == 0
    table = pd.read_csv(tmp_path / "out" / "robustness.csv")
    assert list(table["condition"]) == ["undisturbed", "without the top 10 %", "noise of 0.5 SD"]
    code, error = mhim("--remove", "0.1,x")
    assert code == 1
    assert "remove.1" in error
    assert len(error.splitlines()) == 1
