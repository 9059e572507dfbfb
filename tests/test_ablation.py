"""mhim ablate: which runs a table needs, what they share, what is printed; on a cohort of a few cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mhim.ablation import TABLES, Study, measure, plan_study
from mhim.ablation_tables import csv_table, markdown
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import ConfigError
from mhim.training.runs import open_run
from small_runs import split_cohort

NOWHERE = {"cohort": "cohort.csv", "features": "features", "splits": "splits.csv"}


def study(models: tuple[str, ...] = ("abmil",), tables: tuple[str, ...] = tuple(TABLES), **more: Any) -> Study:
    return Study(models, more.pop("seeds", (0,)), tables, more.pop("like", "camelyon16"), {**NOWHERE, **more})


def method(model: str, variant: str, like: str = "camelyon16", **more: Any) -> dict[str, Any]:
    return study((model,), like=like, **more).configuration(model, 0, variant).method.model_dump()


def test_the_tables_are_the_published_ones() -> None:
    """Corner values of tables 3 to 5, and rows that are the same experiment say the same."""
    assert TABLES["module"][1].published == (95.86, 96.06, 94.14, 93.75)
    assert TABLES["strategy"][2].published == (95.81, 96.49, 94.33, 94.67)
    assert TABLES["teacher"][2].published == (95.88, 96.12, 94.66, 94.15)
    assert TABLES["module"][0].published == TABLES["teacher"][0].published
    assert TABLES["module"][3].published == TABLES["teacher"][4].published
    # the published strategy of each column is the full method
    strategy = {row.variant: row.published for row in TABLES["strategy"]}
    best = [strategy["r-ham"][0], strategy["l-ham"][1], strategy["lr-ham"][2], strategy["lr-ham"][3]]
    assert tuple(best) == TABLES["module"][3].published


@pytest.mark.parametrize(
    ("model", "like", "own"),
    [
        ("abmil", "camelyon16", "r-ham"),
        ("transmil", "camelyon16", "l-ham"),
        ("abmil", "tcga", "lr-ham"),
        ("transmil", "tcga", "lr-ham"),
        ("clam-sb", "camelyon16", "r-ham"),
    ],
)
def test_the_published_strategy_is_the_full_method(model: str, like: Any, own: str) -> None:
    chosen = study((model,), like=like)
    strategies = [row.variant for row in TABLES["strategy"]]
    assert [name for name in strategies if chosen.run_of(model, name) == "full"] == [own]
    assert chosen.configuration(model, 0, own) == chosen.configuration(model, 0, "full")


def test_strategies_differ_in_their_sets_alone() -> None:
    masks = {row.variant: method("transmil", row.variant)["mask"] for row in TABLES["strategy"]}
    sets = {name: (mask["mask_ratio_random"], mask["mask_ratio_low"]) for name, mask in masks.items()}
    assert sets == {"ham": (0, 0), "r-ham": (0.2, 0), "l-ham": (0, 0.8), "lr-ham": (0.2, 0.8)}
    for mask in masks.values():
        assert (mask["mask_ratio_high"], mask["high_candidate_factor"], mask["high_decay"]) == (0.03, 0.5, "cosine")


def test_teachers_and_modules_are_the_changes_of_section_4_8() -> None:
    full = method("abmil", "full")
    for variant, changed in {
        "self-teacher": {"momentum", "teacher_init", "consistency_weight"},
        "without-consistency": {"consistency_weight"},
        "student-copy": {"momentum", "teacher_init"},
        "init-only": {"momentum"},
        "momentum-only": {"teacher_init"},
    }.items():
        other = method("abmil", variant)
        assert {key for key in full if full[key] != other[key]} == changed
    assert method("abmil", "baseline")["name"] == "supervised"


def test_the_users_own_values_hold_for_every_variant() -> None:
    more = {"method": {"consistency_weight": 0.7, "mask": {"mask_ratio_random": 0.3}}}
    assert method("abmil", "init-only", **more)["consistency_weight"] == 0.7
    assert method("abmil", "lr-ham", **more)["mask"]["mask_ratio_random"] == 0.3
    assert method("abmil", "without-consistency", **more)["consistency_weight"] == 0.0


Command = Callable[..., int]


@pytest.fixture
def mhim(monkeypatch: pytest.MonkeyPatch, cohort_folder: Path) -> Command:
    """mhim ablate on the small cohort; the exit code."""
    split_cohort(cohort_folder)

    def run(*arguments: object) -> int:
        data = [f"--{key}={cohort_folder / name}" for key, name in NOWHERE.items()]
        small = ["--set", "model.dim=8", "--set", "train.lr=0.001", "--set", "train.threads=1", "--device", "cpu"]
        given = ["mhim", "ablate", "-o", str(cohort_folder / "out"), *data, *small, "--epochs", "2"]
        monkeypatch.setattr("sys.argv", [*given, *map(str, arguments)])
        return run_app(app)

    return run


def test_the_module_table_end_to_end_and_again(cohort_folder: Path, mhim: Command, capsys: Any) -> None:
    out = cohort_folder / "out"
    assert mhim("--table", "module", "--seeds", "0,1", "--dry-run") == 0
    assert not out.exists()
    assert "8 runs, 16 folds to train" in capsys.readouterr().err
    assert mhim("--table", "module", "--seeds", "0,1") == 0
    table = pd.read_csv(out / "table.csv")
    assert list(table["row"]) == ["Baseline", "+MHIM", "+Siam.", "+Con."]
    assert (table["seeds"] == 2).all()
    assert (table["folds"] == 4).all()
    assert list(table["published_auc_camelyon16"]) == [94.0, 95.86, 95.82, 96.14]
    assert table["difference"].isna().tolist() == [True, False, False, False]
    for _, row in table.iterrows():
        runs = [open_run(out / "abmil" / f"seed_{seed}" / row["variant"]) for seed in (0, 1)]
        folds = [run.fold_info(fold)["test_auroc"] for run in runs for fold in run.folds]
        assert row["auroc"] == pytest.approx(sum(folds) / 4, abs=1e-12)
    text = (out / "table.md").read_text()
    assert "not comparable" in text
    assert "| +Con. |" in text
    # the plain baseline is trained once and is what the others start from
    identities = {path.parent.name for path in out.rglob("run.json")}
    assert identities == {"baseline", "self-teacher", "without-consistency", "full"}
    info = open_run(out / "abmil" / "seed_0" / "full").info
    assert info["baseline_identity"] == open_run(out / "abmil" / "seed_0" / "baseline").info["identity"]
    # again, one table more: only what is missing is trained
    capsys.readouterr()
    assert mhim("--table", "all", "--seeds", "0,1", "--dry-run") == 0
    assert "20 runs, 24 folds to train" in capsys.readouterr().err
    (out / "abmil" / "seed_1" / "full" / "fold_1" / "fold.json").unlink()
    assert mhim("--table", "module", "--seeds", "0,1") == 0
    assert "8 runs, 1 fold to train" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), table)


def test_an_aggregator_without_published_numbers_has_none(cohort_folder: Path, mhim: Command) -> None:
    assert mhim("--models", "abmil,mean", "--table", "teacher", "--like", "tcga") == 0
    table = pd.read_csv(cohort_folder / "out" / "table.csv").set_index(["model", "row"])
    assert table.loc[("abmil", "Init."), "published_auc_tcga_nsclc"] == 94.66
    assert pd.isna(table.loc[("mean", "Init."), "published_auc_tcga_nsclc"])
    assert (cohort_folder / "out" / "mean" / "seed_0" / "student-copy" / "fold_1" / "fold.json").is_file()


def test_each_seed_may_have_its_own_folds_under_a_published_protocol(
    cohort_folder: Path, mhim: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The published folds differ by seed, and their test part chooses the epoch: the table says so."""
    published = "iccv2023-camelyon16"
    for seed in ("2021", "2022"):
        given = [f"--protocol={published}", f"--seed={seed}", "-o", str(cohort_folder / f"folds_{seed}.csv")]
        monkeypatch.setattr("sys.argv", ["mhim", "split", str(cohort_folder / "cohort.csv"), *given])
        assert run_app(app) == 0
    chosen = ["--splits", cohort_folder / "folds_{seed}.csv", "--seeds", "2021,2022", "--table", "teacher"]
    assert mhim(*chosen) == 1
    assert "validates on its test part" in capsys.readouterr().err
    assert mhim(*chosen, "--protocol", published) == 0
    text = (cohort_folder / "out" / "table.md").read_text()
    assert "the test part chose the epoch and threshold, as published" in text
    assert "inner validation part" not in text
    runs = [open_run(cohort_folder / "out" / "abmil" / f"seed_{seed}" / "full") for seed in (2021, 2022)]
    assert {run.config.protocol for run in runs} == {published}
    tested = [set(run.test_predictions().query("fold == 0")["slide_id"]) for run in runs]
    assert tested[0] != tested[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "a"], "--seeds a: expected whole numbers"),
        (["--models", ","], "--models names no aggregator"),
        (["--models", "clamp"], "unknown model 'clamp'"),
        (["--table", "modules"], "--table modules: expected module, strategy, teacher or all"),
        (["--like", "brca"], "--like brca"),
        (["--set", "method.name=mhim-v2"], "'method' is what is compared"),
        (["--set", "method.momentum=2"], "momentum"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: list[str], message: str, mhim: Command, capsys: Any) -> None:
    assert mhim(*arguments) == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_single_seed_has_no_spread(cohort_folder: Path) -> None:
    split_cohort(cohort_folder)
    data = {key: str(cohort_folder / name) for key, name in NOWHERE.items()}
    training = {"epochs": 1, "threads": 1, "device": "cpu"}
    chosen = Study(("abmil",), (3,), ("strategy",), "camelyon16", {**data, "model": {"dim": 8}, "train": training})
    planned = plan_study(chosen, cohort_folder / "out")
    assert [each.variant for each in planned] == ["baseline", "ham", "full", "l-ham", "lr-ham"]
    from mhim.training.crossval import train_run

    for each in planned:
        train_run(each.plan, each.folder, baseline=each.baseline)
    cells = measure(chosen, planned, 100)
    table = csv_table(chosen, cells)
    assert table["auroc_seed_std"].isna().all()
    assert "±" not in markdown(chosen, planned, cells).split("Here:")[0]


def test_unknown_variants_are_errors() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'ablation/other'"):
        study().configuration("abmil", 0, "other")
