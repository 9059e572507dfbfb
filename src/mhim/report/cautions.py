"""What a reader has to keep in mind: each caution is a plain sentence with its numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mhim.evaluation import Summary
from mhim.maps.study import read_test_predictions
from mhim.metrics import METRICS
from mhim.protocols import protocol
from mhim.training.runs import Run

FEW_CASES = 100
FEW_OF_A_CLASS = 5
OPTIMISM = 0.1
RARE_CLASS = 0.1


def cautions(runs: Sequence[Run], metrics: Sequence[dict[str, Any]], summaries: Sequence[Summary]) -> list[str]:
    """The cautions that hold, most general first.

    Args:
        runs: the runs of the report.
        metrics: what :func:`mhim.evaluation.evaluate_run` says of each.
        summaries: the rows of the results table.
    """
    published = protocol(runs[0].config.protocol).caution
    found = [*([published] if published else []), *_small_data(runs[0], metrics[0]), *_different_data(runs)]
    for run, said in zip(runs, metrics, strict=True):
        found += _undefined(run, said) + _training(run)
    for summary in summaries:
        found += _inconclusive(summary)
    return list(dict.fromkeys(found))


def _small_data(run: Run, metrics: dict[str, Any]) -> list[str]:
    found = []
    said = read_test_predictions(run)
    if metrics["n_cases"] < FEW_CASES:
        found.append(
            f"Only {metrics['n_cases']} cases were tested; intervals are wide, and a percentile bootstrap over so few "
            f"cases is itself approximate."
        )
    counts = Counter((one.fold, one.y_true) for one in said)
    least = min(counts[fold, name] for fold in run.folds for name in run.classes)
    if least < FEW_OF_A_CLASS:
        found.append(f"Some test folds hold as few as {least} slides of a class; values of single folds say little.")
    for name in run.classes:
        share = sum(one.y_true == name for one in said) / len(said)
        if share < RARE_CLASS:
            found.append(f"Class {name} is rare ({share:.1%} of slides); read AUPRC beside AUROC.")
    if run.info.get("mpp") is None:
        found.append("The features do not say at which scale (mpp) their tiles were read.")
    return found


def _different_data(runs: Sequence[Run]) -> list[str]:
    others = [run for run in runs[1:] if run.info["data_fingerprint"] != runs[0].info["data_fingerprint"]]
    return [
        f"{run.config.title} was trained on other features or labels than {runs[0].config.title}; the difference "
        f"between them is not one of method alone."
        for run in others
    ]


def _undefined(run: Run, metrics: dict[str, Any]) -> list[str]:
    found = []
    for name in METRICS:
        folds = [str(entry["fold"]) for entry in metrics["folds"] if entry[name] is None]
        if folds:
            found.append(
                f"{run.config.title}: {name.replace('_', ' ')} is undefined in fold {', '.join(folds)} (a class is "
                f"absent); the mean leaves it out."
            )
    return found


def _training(run: Run) -> list[str]:
    found = []
    facts = [run.fold_info(fold) for fold in run.folds]
    early = [str(fact["fold"]) for fact in facts if fact["best_epoch"] == 0]
    last = [str(f["fold"]) for f in facts if f["best_epoch"] == f["epochs"] - 1 and f["epochs"] > 1]
    if early:
        found.append(
            f"{run.config.title}: in fold {', '.join(early)} the first epoch was the best on validation; the rest of "
            f"the training did not help there, and the validation part may be too small to choose by."
        )
    if last:
        found.append(f"{run.config.title}: in fold {', '.join(last)} the last epoch was the best; train longer.")
    gaps = [f["val_auroc"] - f["test_auroc"] for f in facts if None not in (f["val_auroc"], f["test_auroc"])]
    if gaps and np.mean(gaps) > OPTIMISM:
        found.append(
            f"{run.config.title}: validation AUROC is on average {np.mean(gaps):.2f} above test AUROC; the validation "
            f"part chose the epoch and flatters itself. Only test values are reported as results."
        )
    true, said = defaultdict[int, set[str]](set), defaultdict[int, set[str]](set)
    for one in read_test_predictions(run):
        true[one.fold].add(one.y_true)
        said[one.fold].add(one.y_pred)
    one_sided = [str(fold) for fold in sorted(said) if len(said[fold]) == 1 and len(true[fold]) > 1]
    if one_sided:
        found.append(
            f"{run.config.title}: in fold {', '.join(one_sided)} every test slide got the same class; the threshold "
            f"from validation does not carry over."
        )
    return found


def _inconclusive(summary: Summary) -> list[str]:
    found = []
    area = summary.estimates["auroc"]
    if area.interval is not None and area.interval[0] <= 0.5 <= area.interval[1]:
        found.append(f"{summary.title}: the interval of AUROC includes 0.5; better than chance is not shown.")
    difference = summary.difference.get("auroc")
    if difference is not None and difference.interval is not None:
        low, high = difference.interval
        if low <= 0 <= high:
            found.append(
                f"{summary.title}: the interval of its AUROC difference ({low:+.3f} to {high:+.3f}) includes 0; a "
                f"difference is not shown."
            )
    return found
