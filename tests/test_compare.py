"""mhim compare: which runs a table needs, what they share, what is printed; on a cohort of a few cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mhim.training.crossval as crossval
from mhim.bag import place_of_features
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.cohort import read_cohort
from mhim.compare import cost
from mhim.compare.plan import Protocol, plan_comparison, train_comparison
from mhim.compare.plots import forest_figure
from mhim.compare.published import ORAL
from mhim.compare.table import count_text
from mhim.entries import Entry
from mhim.errors import ConfigError
from mhim.evaluation import Estimate, fold_predictions, mean_over_folds
from mhim.protocols import PROTOCOLS, published_splits
from mhim.splits import SplitConfig, read_splits
from mhim.training.crossval import store_of
from mhim.training.runs import open_run

Command = Callable[..., int]


@pytest.fixture
def mhim(monkeypatch: pytest.MonkeyPatch, cohort_folder: Path) -> Command:
    """mhim compare on the small cohort; the exit code."""

    monkeypatch.setattr(cost, "measure_apart", cost.measure)

    def run(*arguments: object) -> int:
        data = ["--cohort", cohort_folder / "cohort.csv", "--features", cohort_folder / "features", "--folds", 2]
        small = [
            "--set",
            "model.dim=8",
            "--set",
            "train.lr=0.001",
            "--device",
            "cpu",
            "--epochs",
            2,
            "--resamples",
            100,
        ]
        given = ["mhim", "compare", "-o", cohort_folder / "out", *data, *small, *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, given)))
        return run_app(app)

    return run


def protocol(**more: Any) -> Protocol:
    values = {"cohort": "cohort.csv", "features": "features", **more.pop("values", {})}
    return Protocol((0,), SplitConfig.model_validate({}), None, more.pop("like", "camelyon16"), values, **more)


def test_entries_by_their_names() -> None:
    assert Entry.parse("clam-mb") == Entry("clam-mb", "clam-mb", "supervised")
    assert Entry.parse("mhim-clam-mb") == Entry("mhim-clam-mb", "clam-mb", "mhim-v1")
    assert Entry.parse("mhim-v2-abmil") == Entry("mhim-v2-abmil", "abmil", "mhim-v2")
    for name in ("mhim-nothing", "nothing", "mhim-v2-", "supervised"):
        with pytest.raises(ConfigError, match="no such aggregator"):
            Entry.parse(name)


@pytest.mark.parametrize("model", ["abmil", "transmil", "dsmil", "clam-sb"])
def test_plain_and_mhim_train_the_same_aggregator_with_the_same_optimisation(model: str) -> None:
    """Else the plain run could not be the teacher's start."""
    plain, v1, v2 = (
        protocol().configuration(Entry.parse(name), 3, Path("splits.csv"))
        for name in (model, f"mhim-{model}", f"mhim-v2-{model}")
    )
    assert plain.model == v1.model == v2.model
    assert plain.train == v1.train == v2.train
    assert [each.method.name for each in (plain, v1, v2)] == ["supervised", "mhim-v1", "mhim-v2"]
    assert {each.seed for each in (plain, v1, v2)} == {3}


def test_mhim_takes_the_published_settings_of_its_aggregator() -> None:
    def mask(name: str, like: Any = "camelyon16") -> dict[str, Any]:
        return protocol(like=like).configuration(Entry.parse(name), 0, Path("s.csv")).method.model_dump()["mask"]

    assert mask("mhim-abmil")["name"] == "r-ham"
    assert mask("mhim-transmil")["name"] == "l-ham"
    assert mask("mhim-transmil", "tcga")["name"] == "lr-ham"


def test_options_for_one_entry_or_one_aggregator_alone() -> None:
    chosen = protocol(overrides={"transmil": {"model": {"landmarks": 8}}, "mhim-abmil": {"seed": 0}})
    landmarks = [
        chosen.configuration(Entry.parse(name), 0, Path("s.csv")).model.model_dump().get("landmarks")
        for name in ("transmil", "mhim-transmil", "abmil")
    ]
    assert landmarks == [8, 8, None]


def test_the_orals_numbers() -> None:
    assert ORAL["mhim-dsmil"].tcga[0] - ORAL["dtfd"].tcga[0] == pytest.approx(1.70)  # the headline
    assert ORAL["mhim-transmil"].memory_gb == 5.5
    assert [count_text(each) for each in (657_000, 2_672_146)] == ["657K", "2.67M"]


def test_a_comparison_end_to_end_and_again(cohort_folder: Path, mhim: Command, capsys: Any) -> None:
    out = cohort_folder / "out"
    options = (
        "--models",
        "mean,mhim-abmil",
        "--seeds",
        "0,1",
        "--reference",
        "oral",
        "--set",
        "mhim-abmil:model.dim=8",
    )
    assert mhim(*options, "--dry-run") == 0
    assert not out.exists()
    assert "6 runs, 12 of 12 folds to train" in capsys.readouterr().err
    assert mhim(*options) == 0
    table = pd.read_csv(out / "table.csv")
    assert list(table["model"]) == ["mean", "mhim-abmil"]  # the baseline was trained, but not asked for
    assert (table["folds"] == 4).all()
    assert list(table["oral_camelyon16_auc"]) == [80.07, 96.14]
    assert (table["cpu_seconds_per_epoch"] > 0).all()
    _same_numbers_by_hand(out, table)
    changes = pd.read_csv(out / "differences.csv")
    assert changes["difference"][0] == pytest.approx(table["auroc"][1] - table["auroc"][0])
    assert changes["training_p_holm"][0] == pytest.approx(changes["training_p"][0])  # one difference
    for name in ("roc.png", "forest.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    text = (out / "table.md").read_text()
    assert "| minus mean | difference, % | other patients? [95 % CI] | p (Holm) |" in text
    assert "Two questions, each with its own interval and p" in text
    assert "nothing here is measured against them" in (out / "table.md").read_text()
    _shared_folds_and_baselines(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("fold.json")}
    capsys.readouterr()
    assert mhim(*options) == 0
    assert "6 runs, 0 of 12 folds to train" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("fold.json")} == before
    assert mhim("--models", "mean", "--seeds", "0,1", "--folds", "3") == 1
    assert "holds other folds than" in capsys.readouterr().err


def _same_numbers_by_hand(out: Path, table: pd.DataFrame) -> None:
    for _, row in table.iterrows():
        runs = [open_run(out / "runs" / str(row["model"]) / f"seed_{seed}") for seed in (0, 1)]
        means = [mean_over_folds(fold_predictions(run), "auroc") or 0.0 for run in runs]
        assert row["auroc"] == pytest.approx(np.mean(means))
        assert row["auroc_seed_std"] == pytest.approx(np.std(means))
        assert row["parameters"] == sum(each.numel() for each in runs[0].model(0).parameters())


def _shared_folds_and_baselines(out: Path) -> None:
    assert read_splits(out / "splits" / "seed_0.csv") != read_splits(out / "splits" / "seed_1.csv")
    for seed in (0, 1):
        folders = [out / "runs" / name / f"seed_{seed}" for name in ("mean", "abmil", "mhim-abmil")]
        info = [json.loads((folder / "run.json").read_text()) for folder in folders]
        assert info[2]["baseline_identity"] == info[1]["identity"]
        assert len({json.loads((folder / "data.json").read_text())["folds"] for folder in folders}) == 1
        assert not (folders[2] / "baseline").exists()


def test_every_fold_is_trained_once_and_both_methods_start_from_the_one_baseline(
    cohort_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features too are there once: every fold of every entry maps the same files."""
    trained: list[tuple[str, int, Path | None]] = []
    real = crossval.train_fold

    def counted(plan: Any, fold: int, out: Path, baseline: Path | None, *more: Any) -> None:
        trained.append((plan.config.title, fold, baseline))
        real(plan, fold, out, baseline, *more)

    monkeypatch.setattr(crossval, "train_fold", counted)
    values: dict[str, Any] = {"features": str(cohort_folder / "features"), "cohort": str(cohort_folder / "cohort.csv")}
    values |= {"train": {"epochs": 1, "device": "cpu"}, "model": {"dim": 8}}
    chosen = replace(protocol(values=values), split=SplitConfig(folds=2))
    comparison = plan_comparison(["mhim-v2-abmil", "mhim-abmil"], chosen, False, cohort_folder / "out")
    mapped = {run.entry.name: store_of(run.plan.config, comparison.cohort) for run in comparison.runs}
    assert all(place_of_features(store.path("s00_0")) is not None for store in mapped.values())
    assert train_comparison(comparison, workers=0) == {}
    base = cohort_folder / "out" / "runs" / "abmil" / "seed_0"
    assert sorted(trained, key=str) == sorted(
        [
            *(("abmil", fold, None) for fold in (0, 1)),
            *((f"mhim-{version} (abmil)", fold, base) for version in ("v1", "v2") for fold in (0, 1)),
        ],
        key=str,
    )


def test_a_run_that_fails_does_not_stop_the_others(cohort_folder: Path, mhim: Command, capsys: Any) -> None:
    plugin = cohort_folder / "mine.py"
    plugin.write_text(
        "from mhim.errors import FeatureError\nfrom mhim.models import ABMIL, models\n"
        "@models.register('broken')\nclass Broken(ABMIL):\n    def losses(self, output, label):\n"
        "        raise FeatureError('slide x: the training loss is not finite')\n"
    )
    assert mhim("--models", "mean,broken,mhim-broken", "--plugin", plugin) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "error broken seed 0: slide x: the training loss is not finite" in said
    assert "error mhim-broken seed 0: its baseline failed" in said
    assert list(pd.read_csv(cohort_folder / "out" / "table.csv")["model"]) == ["mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference", "paper"), "expected oral"),
        (("--models", ","), "names no aggregator"),
        (("--models", "mean", "--seeds", "a"), "expected whole numbers"),
        (("--models", "mean", "--set", "abmil:model.dim=3"), "abmil: is not compared"),
        (("--models", "mean", "--set", "model.name=max"), "is what is compared"),
        (("--models", "mean", "--set", "seed=3"), "comes from --seeds"),
        (("--models", "mean", "--like", "you"), "expected camelyon16 or tcga"),
        (("--models", "mean,max", "--set", "max:protocol=ijcv2025"), "but compare mean has honest"),
        (("--models", "mean", "--set", "protocol=ijcv2025", "--use-fold-column"), "draws its own folds"),
    ],
)
def test_what_cannot_be_compared(arguments: tuple[str, ...], message: str, mhim: Command, capsys: Any) -> None:
    assert mhim(*arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_folds_that_validate_on_test_are_compared_under_their_protocols_name_only(
    cohort_folder: Path, mhim: Command, capsys: Any
) -> None:
    """The folds of a published protocol are the reference program's, and every sentence says who chose."""
    published = ("--models", "mean", "--set", "protocol=iccv2023-camelyon16", "--seeds", 2021, "--folds", 3)
    assert mhim(*published) == 0
    out = cohort_folder / "out"
    splits = read_splits(out / "splits" / "seed_2021.csv")
    expected = published_splits(read_cohort(cohort_folder / "cohort.csv"), PROTOCOLS["iccv2023-camelyon16"], 2021)
    assert splits == expected
    text = (out / "table.md").read_text()
    assert "CAUTION, protocol iccv2023-camelyon16: the test part chose the epoch and threshold" in text
    assert "scored once" not in text
    capsys.readouterr()
    given = ("--models", "mean", "--splits", out / "splits" / "seed_2021.csv")
    assert mhim(*given, "-o", cohort_folder / "honest") == 1
    assert "validates on its test part, which protocol honest does not" in " ".join(capsys.readouterr().err.split())


def test_forest_plot_draws_an_interval_with_the_p_of_the_same_question() -> None:
    differs = SimpleNamespace(difference=0.1, bootstrap=(0.02, 0.2), bootstrap_holm_p=0.031, holm_p=0.9)
    rows = [
        SimpleNamespace(
            entry=SimpleNamespace(name=name, method="supervised"),
            estimates={"auroc": Estimate(0.7, (0.6, 0.8))},
            difference=difference,
            runs=[],
        )
        for name, difference in (("a", None), ("b", differs))
    ]
    results: Any = SimpleNamespace(rows=rows)
    panel = forest_figure(results).axes[1]
    assert [text.get_text() for text in panel.texts] == ["p 0.031"]
    assert list(panel.lines[0].get_xdata()) == [2.0, 20.0]
