"""The report of survival runs: C-index, Kaplan-Meier curves of the risk groups, training, cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.evaluation import Estimate, Summary, fold_predictions, format_estimate
from mhim.report.curves import Figure
from mhim.report.svg import Axes, Band, Line, chart
from mhim.survival import SURVIVAL_METRICS, SurvivalPredictions, kaplan_meier, log_rank
from mhim.training.runs import Run

FEW_EVENTS = 10
FEW_CASES = 100
GROUPS = (("high", "c1"), ("low", "c0"))
WORDS: Mapping[str, str] = {
    "metric": "C-index",
    "lead": "What is learned from follow-up of cases alone, tested on cases that the models never saw.",
    "curves": "Kaplan-Meier estimates of the pooled test cases with 95 % limits (Greenwood, log-log), in two groups: "
    "risk above the median of the fold's validation part, or not. The log-rank test takes the groups as given and "
    "the cases as independent; cases of one fold share a model, so its p-value is a description.",
    "units": "Cases",
    "filter": "only events",
    "search": "case",
    "mark": "A mark at the left: the event was seen.",
    "caption": "Test prediction of every case",
}


def risk_groups(run: Run) -> dict[str, SurvivalPredictions]:
    """Test cases of all folds by risk group, high and low."""
    parts = dict(iter(run.test_predictions().groupby("risk_group")))
    none = SurvivalPredictions(np.array([], dtype=np.str_), np.array([]), np.array([], dtype=bool), np.zeros((0, 1)))
    return {name: run.task.from_table(parts[name], run.classes) if name in parts else none for name, _ in GROUPS}


def survival_curves(run: Run) -> list[Figure]:
    """Kaplan-Meier curves of the risk groups."""
    groups = risk_groups(run)
    latest = max(float(group.times.max()) for group in groups.values() if len(group))
    marks: list[Line | Band] = []
    for name, css in GROUPS:
        group = groups[name]
        if not len(group):
            continue
        steps = kaplan_meier(group.times, group.events)
        defined = np.isfinite(steps.low) & np.isfinite(steps.high)
        low, high = (np.where(defined, limit, steps.survival) for limit in (steps.low, steps.high))
        x = np.append(np.repeat(steps.times, 2)[1:], group.times.max())
        marks.append(Band(x, _held(low), _held(high), f"band {css}"))
        marks.append(Line(x, _held(steps.survival), css, label=f"{name} risk"))
    p_value = log_rank(groups["high"], groups["low"])
    said = "not defined" if p_value is None else "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.4f}"
    text = f"Kaplan-Meier curves of {run.config.title}: test cases of high and of low risk"
    legend = tuple(
        (css, f"{name} risk ({len(groups[name])} cases, {groups[name].events.sum()} events)") for name, css in GROUPS
    )
    svg = chart(Axes("time", "survival", text, (0.0, latest)), marks)
    return [Figure(svg, f"Survival by risk group; log-rank {said}", legend)]


def _held(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of steps, each held until the next one."""
    return np.repeat(values, 2)


def case_table(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Header and rows of the table of cases; a row is marked where the event was seen."""
    header = ["case", "fold", "time", "event"]
    for name in names:
        header += [f"{name}: risk", f"{name}: group"]
    tables = [run.test_predictions().set_index("case_id").sort_index() for run in runs]
    rows: list[dict[str, Any]] = []
    for case in tables[0].index:
        first: Any = tables[0].loc[case]
        cells = [str(case), str(first["fold"]), f"{first['time']:g}", "event" if first["event"] else "censored"]
        for table in tables:
            one: Any = table.loc[case]
            cells += [f"{one['risk']:.4f}", str(one["risk_group"])]
        rows.append({"cells": cells, "wrong": bool(first["event"])})
    events = sum(row["wrong"] for row in rows)
    return {"header": header, "rows": rows, "sentence": f"{len(rows)} tested cases; the event was seen in {events}."}


def data_rows(run: Run, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was tested."""
    return [
        ("cases tested", str(metrics["n_cases"])),
        ("events among them", str(metrics["n_events"])),
        ("slides tested", str(metrics["n_slides"])),
        ("bins of time", str(len(run.classes))),
        ("encoder", str(run.info["encoder"] or "not recorded")),
        ("feature width", str(run.info["in_dim"])),
        ("scale of tiles (mpp)", f"{run.info['mpp']:g} µm per pixel" if run.info["mpp"] else "not recorded"),
    ]


def fold_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Cases and events by fold and part."""
    header = ["fold", *(f"{part}: cases (events)" for part in ("train", "validation", "test"))]
    rows = []
    for fold in run.folds:
        fact = run.fold_info(fold)
        counts = [f"{fact['n_cases'][part]} ({fact['n_events'][part]})" for part in ("train", "val", "test")]
        rows.append([f"fold {fold}", *counts])
    return header, rows


def result_rows(run: Run, metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Both C-indices by fold, their mean, and pooled."""
    rows = []
    for entry in metrics["folds"]:
        fact = run.fold_info(entry["fold"])
        edges = ", ".join(f"{edge:g}" for edge in np.round(fact["time_edges"][1:-1], 3))
        values = [format_estimate(Estimate(entry[name], None)) for name in SURVIVAL_METRICS]
        rows.append([f"fold {entry['fold']}", *values, str(entry["best_epoch"]), edges])
    for label, key in (("mean", "fold_mean"), ("pooled", "pooled")):
        rows.append([label, *(_with_interval(metrics[key][name]) for name in SURVIVAL_METRICS), "", ""])
    return ["fold", "C-index", "C-index, IPCW", "best epoch", "edges of the bins of time"], rows


def _with_interval(said: Mapping[str, float | None]) -> str:
    low, high = said["low"], said["high"]
    return format_estimate(Estimate(said["value"], None if low is None or high is None else (low, high)))


def survival_cautions(
    runs: Sequence[Run], metrics: Sequence[Mapping[str, Any]], summaries: Sequence[Summary]
) -> list[str]:
    """The cautions that hold, most general first."""
    found = []
    if metrics[0]["n_cases"] < FEW_CASES:
        found.append(f"Only {metrics[0]['n_cases']} cases were tested; intervals are wide.")
    least = min(int(fold.events.sum()) for fold in fold_predictions(runs[0]))
    if least < FEW_EVENTS:
        found.append(f"Some test folds hold as few as {least} events; values of single folds say little.")
    for run in runs:
        facts = [run.fold_info(fold) for fold in run.folds]
        last = [str(f["fold"]) for f in facts if f["best_epoch"] == f["epochs"] - 1 and f["epochs"] > 1]
        if last:
            found.append(f"{run.config.title}: in fold {', '.join(last)} the last epoch was the best; train longer.")
    for summary in summaries:
        for name, estimates, chance in (("C-index", summary.estimates, 0.5), ("difference", summary.difference, 0.0)):
            estimate = estimates.get("c_index")
            if estimate is not None and estimate.interval and estimate.interval[0] <= chance <= estimate.interval[1]:
                found.append(
                    f"{summary.title}: the interval of its {name} includes {chance:g}; an effect is not shown."
                )
    return list(dict.fromkeys(found))
