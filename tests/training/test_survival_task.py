"""Survival end to end: what the tables say is refused or kept, training parts alone make bins, risk is learned."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cohort_files import write_cohort
from mhim.artefacts import read_json
from mhim.bag import load_bag
from mhim.checkpoint import read_metadata
from mhim.cohort import read_survival_cohort
from mhim.config import merge, validate
from mhim.errors import CohortError, ConfigError
from mhim.evaluation import evaluate_run, summarise, table_rows
from mhim.maps import MapConfig, Study
from mhim.methods import DiscreteHazards
from mhim.models import models
from mhim.presets import preset_values
from mhim.report import ReportConfig, write_report
from mhim.splits import SplitConfig, Splits, make_splits, write_splits
from mhim.survival import (
    SurvivalPredictions,
    assign_bins,
    c_index,
    concordance,
    hazard_loss,
    kaplan_meier,
    log_rank,
    resampled_c_index,
    risk,
    time_bins,
)
from mhim.training.crossval import plan_run
from mhim.training.data import BagStore
from mhim.training.runs import RunConfig, tasks
from small_runs import run_config, small_plan, train_all
from survival_files import HEADER, write_survival_cohort

SURVIVAL: dict[str, Any] = {"task": "survival", "model": {"name": "mean"}, "train": {"epochs": 10, "lr": 2e-3}}
NARROW = {"abmil": {"dim": 16}, "dsmil": {"dim": 16}, "transmil": {"dim": 16, "heads": 2, "landmarks": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohort, bags and splits of 60 cases in 2 folds; whoever trains writes below it."""
    folder = tmp_path_factory.mktemp("survival")
    cohort = read_survival_cohort(write_survival_cohort(folder))
    write_splits(folder / "splits.csv", make_splits(cohort, SplitConfig(folds=2, val_fraction=0.3)))
    return folder


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["a,a,,1"], "slide a has no time; fill the column 'time'"),
        (["a,a,3,"], "slide a has no event; fill the column 'event'"),
        (["a,a,-3,1"], r"line 2: time -3 is negative"),
        (["a,a,3,2"], r"line 2: event 2 is neither 1 \(event\) nor 0 \(censored\)"),
        (["a,a,soon,1"], "line 2: time 'soon' is not a number"),
        (["a,a,3,0", "b,b,4,0"], "no case has an event"),
        (["a,c,3,1", "b,c,4,1"], "slides a and b of case c differ in time or event"),
    ],
)
def test_a_table_without_usable_follow_up_is_refused(rows: list[str], fault: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=fault):
        read_survival_cohort(table(tmp_path, *rows))


def test_the_polarity_of_an_event_is_asked_and_not_guessed(tmp_path: Path) -> None:
    path = table(tmp_path, "a,a,3,1", header="slide_id,case_id,survival_months,censorship")
    with pytest.raises(CohortError, match="event = 1 - censorship"):
        read_survival_cohort(path)


@pytest.mark.parametrize("study", ["blca", "luad", "lusc"])
def test_folds_of_a_published_table(shared: Path, study: str, tmp_path: Path) -> None:
    """Every part has its share of events, and of early and late ones; a case with several slides is one case."""
    with (shared / "data" / "camelyon16_tcga_meta" / f"mhim_label_{study}_surv.csv").open() as file:
        published = list(csv.DictReader(file))
    rows = [
        f"{slide.removesuffix('.pt')},{row['ID']},{row['Event']},{row['Status']}"
        for row in published
        for slide in row["WSI"].split(";")
    ]
    cohort = read_survival_cohort(table(tmp_path, *rows))
    assert len(cohort.case_labels()) == len(published)
    assert len(cohort) == {"blca": 446, "luad": 518, "lusc": 484}[study]
    events, times = cohort.case_labels(), cohort.case_times()
    share = sum(events.values()) / len(events)
    middle = np.median([times[case] for case in events if events[case]])
    for fold in make_splits(cohort, SplitConfig(folds=5)).folds:
        for part in ("train", "val", "test"):
            cases = fold.part(part)
            seen = [case for case in cases if events[case]]
            assert len(seen) / len(cases) == pytest.approx(share, abs=0.03)
            assert np.mean([times[case] <= middle for case in seen]) == pytest.approx(0.5, abs=0.12)
        task: Any = tasks.build(tasks.parse("survival"))
        own = np.array([times[case] for case in fold.train])
        expected = time_bins(own, np.array([events[case] == 1 for case in fold.train]))
        np.testing.assert_array_equal(task.edges(cohort, fold), expected)


def test_too_few_events_in_a_training_part_name_the_fold(folder: Path) -> None:
    with pytest.raises(CohortError, match=r"training part of fold 0: \d+ events do not fill 60 bins.*task.bins"):
        small_plan(folder, **merge(SURVIVAL, {"task": {"name": "survival", "bins": 60}}))


def test_the_epoch_is_chosen_by_c_index_and_by_nothing_that_survival_lacks(folder: Path) -> None:
    assert run_config(folder, task="survival").train.select_by == "c-index"
    assert run_config(folder, task="survival", train={"select_by": "loss"}).train.select_by == "loss"
    with pytest.raises(ConfigError, match="select_by is auroc, which survival does not have; give --set"):
        run_config(folder, task="survival", train={"select_by": "auroc"})
    with pytest.raises(ConfigError, match="select_by is c-index, which classification does not have"):
        run_config(folder, train={"select_by": "c-index"})


def test_the_identity_of_a_classification_does_not_know_of_tasks(folder: Path) -> None:
    plain, same = run_config(folder), run_config(folder, task="classification")
    survival, bins = run_config(folder, task="survival"), run_config(folder, task={"name": "survival", "bins": 3})
    assert plain.recipe == same.recipe
    assert len({plain.recipe, survival.recipe, bins.recipe}) == 3


def test_a_case_is_one_bag_of_all_its_slides(folder: Path) -> None:
    cohort = read_survival_cohort(folder / "cohort.csv")
    plan = small_plan(folder, **SURVIVAL)
    task, fold = tasks.build(plan.config.task), plan.splits.folds[0]
    several = next(case for case in fold.test if len(cohort.of_cases([case])) == 2)
    bags = task.bags(BagStore(folder / "features", cohort), fold, "test")
    assert len(bags) == len(fold.test)
    assert bags.n_slides == len(cohort.of_cases(fold.test))
    bag = bags[bags.names.index(several)]
    files = [folder / "features" / f"{row.slide_id}.h5" for row in cohort.of_cases([several])]
    np.testing.assert_array_equal(bag.features.numpy(), np.concatenate([load_bag(path).features for path in files]))


@pytest.mark.parametrize("name", list(models))
def test_every_aggregator_has_a_survival_loss_that_reaches_its_parameters(name: str) -> None:
    torch.manual_seed(0)
    narrow = {key: value for key, value in NARROW.get(name, {}).items() if key in models[name].Config.model_fields}
    model = models.build(models.parse({"name": name, **narrow}), 6, 4)
    output = model(torch.randn(30, 6))
    terms = DiscreteHazards().losses(model, output, torch.tensor([2, 1]))
    total = torch.stack(list(terms.values())).sum()
    assert total.item() > 0
    parameters = dict(model.named_parameters())
    names = [key for key, each in parameters.items() if each.requires_grad and not key.startswith("instance_class")]
    own = torch.stack(list(model.losses(output, torch.tensor(2)).values())).sum()
    chosen = [parameters[key] for key in names]
    reached = torch.autograd.grad(own, chosen, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(total, chosen, allow_unused=True)
    assert [each is None for each in found] == [each is None for each in reached]
    assert all(bool(torch.isfinite(each).all()) for each in found if each is not None)
    assert DiscreteHazards().prediction(model, output).shape == (4,)


def test_two_streams_share_the_loss() -> None:
    torch.manual_seed(0)
    target = torch.tensor([1, 0])

    def one(logits: torch.Tensor) -> torch.Tensor:
        return hazard_loss(logits[None], target[:1], target[1:] == 1, 0.3)[0]

    for average in ("probabilities", "logits"):
        model = models.build(models.parse({"name": "dsmil", "average": average}), 6, 4).eval()
        output = model(torch.randn(9, 6))
        other = output.extras["max_logits"]
        terms = DiscreteHazards(0.3).losses(model, output, target)
        halves = {"bag": 0.5 * one(output.logits), "max": 0.5 * one(other)}
        expected = halves if average == "probabilities" else {"bag": one((output.logits + other) / 2)}
        torch.testing.assert_close(terms, expected)


def predictions(count: int = 30, seed: int = 0) -> SurvivalPredictions:
    rng = np.random.default_rng(seed)
    times, events = rng.integers(1, 12, count).astype(float), rng.random(count) < 0.6
    return SurvivalPredictions(np.array([f"c{i}" for i in range(count)]), times, events, rng.normal(size=(count, 3)))


def test_a_weight_repeats_a_case() -> None:
    said = predictions()
    weights = np.random.default_rng(1).integers(0, 4, (5, len(said)))
    found = resampled_c_index(said, weights.astype(float))
    for row, value in zip(weights, found, strict=True):
        index = np.repeat(np.arange(len(said)), row)
        assert value == pytest.approx(concordance(said.times[index], said.events[index], said.risks[index]), abs=1e-12)
    assert resampled_c_index(said, np.ones((1, len(said))))[0] == pytest.approx(c_index(said), abs=1e-12)
    assert np.isnan(resampled_c_index(said, np.zeros((1, len(said)))))[0]


def test_survival_of_a_group_by_hand() -> None:
    """Product over event times of (1 - deaths / at risk), written out; log-rank by its hypergeometric sums."""
    said = predictions(40)
    steps = kaplan_meier(said.times, said.events)
    survival, expected = 1.0, []
    for time in np.unique(said.times):
        survival *= 1 - np.sum(said.events & (said.times == time)) / np.sum(said.times >= time)
        expected.append(survival)
    np.testing.assert_allclose(steps.survival, [1.0, *expected], atol=1e-12)
    assert steps.times[0] == 0
    first, second = predictions(25, 1), predictions(35, 2)
    times, events = np.append(first.times, second.times), np.append(first.events, second.events)
    group = np.arange(60) < 25
    observed = expected_sum = variance = 0.0
    for time in np.unique(times[events]):
        risky, dead = times >= time, events & (times == time)
        n, d, own = risky.sum(), dead.sum(), (risky & group).sum()
        observed += (dead & group).sum()
        expected_sum += d * own / n
        variance += d * (own / n) * (1 - own / n) * (n - d) / max(n - 1, 1)
    from scipy.stats import chi2

    p_value = chi2.sf((observed - expected_sum) ** 2 / variance, 1)
    assert log_rank(first, second) == pytest.approx(p_value, abs=1e-9)


@pytest.mark.parametrize("method", ["mhim-v1", "mhim-v2"])
def test_risk_is_learned_on_cases_that_were_not_seen(method: str, folder: Path) -> None:
    """Two stages: the plain baseline and the method around it both rank unseen cases; the teacher starts from it."""
    model = {"name": "abmil", "dim": 32, "attention_dim": 8, "dropout": 0.0}
    change = {"model": model, "method": {"name": method}, "train": {"epochs": 12, "lr": 3e-3}}
    run = train_all(plan_run(run_config(folder, **merge(SURVIVAL, change))), folder / method)
    metrics = evaluate_run(run, 200)
    assert metrics["fold_mean"]["c_index"]["value"] > 0.65
    assert metrics["n_cases"] == 60
    assert metrics["n_slides"] == 72
    own = run.test_predictions()
    logits = own[[f"logit_hazard_{index}" for index in range(4)]].to_numpy()
    np.testing.assert_allclose(own["risk"], risk(torch.from_numpy(logits)).numpy(), atol=1e-9)
    for fold in run.folds:
        part = own[own["fold"] == fold]
        found = concordance(part["time"].to_numpy(), part["event"].to_numpy() == 1, part["risk"].to_numpy())
        info, history = run.fold_info(fold), run.history(fold)
        assert (
            info["test_c_index"] == pytest.approx(found) == pytest.approx(metrics["folds"][fold]["c_index"], abs=1e-6)
        )
        assert info["val_c_index"] == pytest.approx(history["val_c_index"].max())
        assert part["time_bin"].tolist() == assign_bins(part["time"].to_numpy(), np.array(info["time_edges"])).tolist()
        val = run.predictions(fold).query("part == 'val'")
        assert info["threshold"] == pytest.approx(np.median(val["risk"]))
        assert ((part["risk"] > info["threshold"]) == (part["risk_group"] == "high")).all()
        file = run.fold_path(fold) / "model.safetensors"
        assert read_metadata(file)["task"] == "survival"
        plain = load_file(folder / method / "baseline" / f"fold_{fold}" / "model.safetensors")
        assert {key: value.shape for key, value in load_file(file).items()} == {k: v.shape for k, v in plain.items()}
    baseline = Path(folder / method / "baseline")
    assert read_json(run.path / "run.json")["baseline_identity"] == read_json(baseline / "run.json")["identity"]


def test_what_the_test_part_lived_through_changes_nothing_but_its_scores(folder: Path, tmp_path: Path) -> None:
    """Other times in the test part: the same weights, bins and choices."""
    plan = small_plan(folder, **SURVIVAL)
    fold = plan.splits.folds[0]
    changed = pd.read_csv(folder / "cohort.csv", dtype=str)
    tested = changed["case_id"].isin(fold.test)
    changed.loc[tested, "time"] = changed.loc[tested, "time"].map(lambda text: f"{1000 - float(text)}")
    changed.to_csv(tmp_path / "cohort.csv", index=False)
    runs = []
    for name, cohort in (("a", folder), ("b", tmp_path)):
        data = {"cohort": str(cohort / "cohort.csv"), "train": {"epochs": 3}}
        other = plan_run(run_config(folder, **merge(SURVIVAL, data)))
        only = Splits((other.splits.folds[0],))
        runs.append(train_all(replace(other, splits=only), tmp_path / name))
    files = [run.fold_path(0) for run in runs]
    before, after = (load_file(path / "model.safetensors") for path in files)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert runs[0].history(0).equals(runs[1].history(0))
    assert runs[0].fold_info(0)["time_edges"] == runs[1].fold_info(0)["time_edges"]
    assert runs[0].fold_info(0)["test_c_index"] != runs[1].fold_info(0)["test_c_index"]


def test_table_report_and_what_survival_runs_refuse(folder: Path, tmp_path: Path) -> None:
    run = train_all(small_plan(folder, **SURVIVAL), tmp_path / "mean")
    few = {"seed": 1, "task": {"name": "survival", "bins": 3}, "train": {"epochs": 1}}
    other = train_all(small_plan(folder, **merge(SURVIVAL, few)), tmp_path / "other")
    header, rows = table_rows(summarise([run, other], 200))
    assert header == ["model", "C-index [95 % CI]", "C-index, IPCW", "difference in C-index"]
    assert float(rows[0][1].split()[0]) > 0.65
    write_report([run, other], tmp_path / "a.html", validate(ReportConfig, {"resamples": 100}, "test"))
    text = (tmp_path / "a.html").read_text()
    assert "C-index, mean over folds" in text
    assert "Survival by risk group; log-rank p" in text
    assert "AUROC" not in text.split('id="reproduce"')[0]
    with pytest.raises(ConfigError, match="a survival run; drawing maps needs a run with classes"):
        Study.of([run], validate(MapConfig, {}, "test"))
    labels = tmp_path / "labels"
    write_cohort(labels, n_cases=12)
    with pytest.raises(ConfigError, match="a classification run, but .* a survival run; compare runs of one task"):
        summarise([run, train_all(small_plan(labels), tmp_path / "plain")], 200)


@pytest.mark.parametrize("name", ["abmil", "dsmil", "transmil"])
def test_the_published_survival_configuration(name: str) -> None:
    values = merge(preset_values([f"ijcv2025/{name}-survival"]), dict.fromkeys(("cohort", "features", "splits"), "x"))
    config = validate(RunConfig, values, "test")
    assert config.task.model_dump() == {"name": "survival", "bins": 4, "event_share": 0.0}
    assert (config.train.patience, config.train.min_epochs, config.train.select_by) == (15, 32, "c-index")
    twin = validate(
        RunConfig, merge(preset_values([f"ijcv2025/{name}"]), {"cohort": "x", "features": "x", "splits": "x"}), "t"
    )
    assert config.method == twin.method
    assert config.model == twin.model
