"""Metrics of runs with case-bootstrap intervals, and runs compared on the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mhim.artefacts import write_json
from mhim.errors import CohortError, ConfigError
from mhim.metrics import METRICS, Predictions
from mhim.protocols import protocol, require_one_protocol
from mhim.resampling import CaseDraws, percentile_interval, resampled_mean
from mhim.run_statistics import further_statistics
from mhim.survival import SURVIVAL_METRICS, SurvivalPredictions
from mhim.training.runs import Run

RESAMPLES = 1000
BOOTSTRAP_SEED = 0
POINT: dict[str, Callable[[Any], float | None]] = {**METRICS, **SURVIVAL_METRICS}
P = TypeVar("P", Predictions, SurvivalPredictions)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where undefined."""

    value: float | None
    interval: tuple[float, float] | None

    def as_json(self) -> dict[str, float | None]:
        """``value``, ``low``, ``high``, rounded to 6 digits."""
        low, high = self.interval or (None, None)
        return {"value": rounded(self.value), "low": rounded(low), "high": rounded(high)}


def rounded(value: float | None, digits: int = 6) -> float | None:
    """The value rounded, None stays."""
    return None if value is None else round(value, digits)


def fold_predictions(run: Run) -> list[Any]:
    """Test predictions of a run, one entry per fold: ``Predictions``, or ``SurvivalPredictions``."""
    table = run.test_predictions()
    return [run.task.from_table(part, run.classes) for _, part in table.groupby("fold", sort=True)]


def pooled(folds: Sequence[P]) -> P:
    """The folds' predictions as one set."""
    kind = type(folds[0])
    return kind(*(np.concatenate([getattr(fold, each.name) for fold in folds]) for each in fields(kind)))


def draws_of(folds: Sequence[P], resamples: int) -> CaseDraws:
    """Shared draws over all cases of some folds."""
    return CaseDraws.draw(list(np.concatenate([fold.case_id for fold in folds])), resamples, BOOTSTRAP_SEED)


def mean_over_folds(folds: Sequence[P], metric: str) -> float | None:
    """Mean of a metric over the folds that define it."""
    values = [value for fold in folds if (value := POINT[metric](fold)) is not None]
    return float(np.mean(values)) if values else None


def fold_mean(folds: Sequence[P], metric: str, draws: CaseDraws) -> Estimate:
    """Mean of a metric over the folds that define it, with its case-bootstrap interval."""
    return Estimate(mean_over_folds(folds, metric), percentile_interval(resampled_mean(folds, metric, draws)))


def evaluate_run(run: Run, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Metrics of a run: per fold, mean over folds, and pooled, each labelled; no paths, no times.

    The mean over folds is the headline: every fold's model is scored on its own scale. The pooled
    value ranks slides of different models together and is given beside it.
    """
    folds, metrics, counts = fold_predictions(run), run.task.metrics, run.task.counts(run.test_predictions())
    draws = draws_of(folds, resamples)
    per_fold = [{name: rounded(metric(fold)) for name, metric in metrics.items()} for fold in folds]
    everything = pooled(folds)
    mean, together = {}, {}
    for name, metric in metrics.items():
        values = [value for entry in per_fold if (value := entry[name]) is not None]
        spread = {"std": rounded(float(np.std(values))) if values else None, "n_folds": len(values)}
        mean[name] = fold_mean(folds, name, draws).as_json() | spread
        interval = percentile_interval(resampled_mean([everything], name, draws))
        together[name] = Estimate(metric(everything), interval).as_json()
    return {
        "title": run.config.title,
        "classes": list(run.classes),
        **counts,
        "n_cases": len(draws.cases),
        "protocol": run.config.protocol,
        "chosen_by": run.info["chosen_by"],
        "interval": f"95 % percentile bootstrap over cases, {resamples} resamples",
        "folds": [
            {"fold": index, f"n_{run.unit}s": len(fold), "best_epoch": run.fold_info(index)["best_epoch"]} | entry
            for index, (fold, entry) in enumerate(zip(folds, per_fold, strict=True))
        ],
        "fold_mean": mean,
        "pooled": together,
        **({"further": further_statistics(folds, _validation(run), draws)} if run.task.metrics is METRICS else {}),
    }


def _validation(run: Run) -> list[Any] | None:
    """Validation predictions by fold; None where the test part validated."""
    if protocol(run.config.protocol).epoch_by == "test":
        return None
    tables = (run.predictions(fold) for fold in run.folds)
    return [run.task.from_table(table.loc[table["part"] == "val"], run.classes) for table in tables]


def write_metrics(run: Run, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Evaluate a run and write its ``metrics.json``; ``metrics_by_case.json`` for slides that are scored by case."""
    metrics = evaluate_run(run, resamples)
    write_json(run.path / ("metrics.json" if run.unit == run.task.unit else f"metrics_by_{run.unit}.json"), metrics)
    return metrics


@dataclass(frozen=True)
class Summary:
    """Runs of one configuration (several seeds) as one row of a table.

    Attributes:
        title: model and method, with the first run's folder where two configurations share them.
        runs: folders of the runs.
        n_folds: folds over all runs.
        estimates: metric -> mean over all folds of all runs, with its interval.
        run_std: metric -> standard deviation over the runs' fold means; None for one run.
        difference: metric -> difference to the first row on the same draws; empty in the first row.
    """

    title: str
    runs: tuple[Path, ...]
    n_folds: int
    estimates: dict[str, Estimate]
    run_std: dict[str, float | None]
    difference: dict[str, Estimate]


def summarise(runs: Sequence[Run], resamples: int = RESAMPLES) -> list[Summary]:
    """One row per configuration in order of appearance; the first row is what the others are compared with.

    Raises:
        CohortError: runs of two protocols, other slides, labels or classes, or a run given twice.
    """
    require_one_protocol((run.path, run.config.protocol) for run in runs)
    _require_same_slides(runs)
    groups = _by_configuration(runs)
    folds = {run.path: fold_predictions(run) for run in runs}
    draws = draws_of(folds[runs[0].path], resamples)
    summaries: list[Summary] = []
    first: dict[str, tuple[float | None, Any]] = {}
    for title, members in groups.items():
        together = [fold for run in members for fold in folds[run.path]]
        estimates, difference, spread = {}, {}, {}
        for metric in runs[0].task.metrics:
            resampled = resampled_mean(together, metric, draws)
            estimates[metric] = Estimate(mean_over_folds(together, metric), percentile_interval(resampled))
            means = [value for run in members if (value := mean_over_folds(folds[run.path], metric)) is not None]
            spread[metric] = float(np.std(means)) if len(means) > 1 else None
            reference, other = first.setdefault(metric, (estimates[metric].value, resampled))
            value = estimates[metric].value
            if summaries and value is not None and reference is not None:
                difference[metric] = Estimate(value - reference, percentile_interval(resampled - other))
        paths = tuple(run.path for run in members)
        summaries.append(Summary(title, paths, len(together), estimates, spread, difference))
    return summaries


def _by_configuration(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Title -> its runs. Runs that differ in an option or in features that the title does not show are no seeds."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        members = groups.setdefault((run.config.recipe, run.info["data_fingerprint"]), [])
        same = [member.path for member in members if member.info["identity"] == run.info["identity"]]
        if same:
            raise CohortError(f"{run.path}: is the same run as {same[0]}; give it once")
        members.append(run)
    titles = [members[0].config.title for members in groups.values()]
    return {
        title if titles.count(title) == 1 else f"{title}, {members[0].path.name}": members
        for title, members in zip(titles, groups.values(), strict=True)
    }


def _require_same_slides(runs: Sequence[Run]) -> None:
    first = runs[0]
    expected = _tested(first)
    for run in runs[1:]:
        ours, theirs = run.config.task.name, first.config.task.name
        if ours != theirs:
            raise ConfigError(f"{run.path}: a {ours} run, but {first.path} a {theirs} run; compare runs of one task")
        if theirs == "classification" and run.classes != first.classes:
            raise CohortError(f"{run.path}: has other classes than {first.path}; compare runs of one cohort")
        if _tested(run) != expected:
            raise CohortError(
                f"{run.path}: tested other slides than {first.path}, or with other labels; "
                f"compare runs of one cohort and split"
            )


def _tested(run: Run) -> set[tuple[str, ...]]:
    return run.task.tested(run.test_predictions())


def format_estimate(estimate: Estimate | None, digits: int = 3, sign: bool = False) -> str:
    """``0.912 [0.850, 0.961]``; a dash where undefined."""
    if estimate is None or estimate.value is None:
        return "-"
    plus = "+" if sign else ""
    text = f"{estimate.value:{plus}.{digits}f}"
    if estimate.interval is None:
        return text
    low, high = estimate.interval
    return f"{text} [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"


def table_rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the results table, as text."""
    if "c_index" in summaries[0].estimates:
        return ["model", "C-index [95 % CI]", "C-index, IPCW", "difference in C-index"], [
            [
                summary.title,
                *(format_estimate(summary.estimates[name]) for name in SURVIVAL_METRICS),
                format_estimate(summary.difference.get("c_index"), sign=True),
            ]
            for summary in summaries
        ]
    header = ["model", "AUROC [95 % CI]", "AUPRC", "balanced accuracy", "F1", "difference in AUROC"]
    rows = [
        [
            summary.title,
            *(format_estimate(summary.estimates[name]) for name in METRICS),
            format_estimate(summary.difference.get("auroc"), sign=True),
        ]
        for summary in summaries
    ]
    return header, rows


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The results table in Markdown."""
    return markdown_rows(*table_rows(summaries))


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Any table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def caution_of(runs: Sequence[Run]) -> list[str]:
    """What a reader of the runs' numbers has to know: nothing under the honest protocol."""
    caution = protocol(runs[0].config.protocol).caution
    return [] if caution is None else [f"caution: {caution}"]
