"""Run folders compared in pairs: fold by fold and seed by seed, each question with its own interval and p-value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mhim.errors import CohortError, ConfigError
from mhim.evaluation import RESAMPLES, Estimate, Summary, draws_of, fold_predictions, format_estimate
from mhim.paired import PairedComparison, compare_paired, correct_for_many
from mhim.training.runs import Run

QUESTIONS = (
    "Two questions, each with its own interval and p, which may disagree. Other patients: the trained models are "
    "given, cases vary. Other training sets: folds and seeds vary (corrected resampled t-test). Intervals are of one "
    "comparison alone."
)
NAMES = {"auroc": "AUROC", "c_index": "C-index"}
HEADER = ("model", "compared with", "question", "difference [95 % CI]", "p", "p (Holm)")


def compare_summaries(
    runs: Sequence[Run], summaries: Sequence[Summary], resamples: int = RESAMPLES
) -> list[PairedComparison]:
    """Every row of a results table against its first, in the headline metric (AUROC, or the C-index).

    Fold k of seed s stands against fold k of seed s. The variance of the t-test is widened by the mean of test over
    training slides, read from the folds. Holm's correction is over the comparisons returned.

    Args:
        runs: all runs that the rows are made of.
        summaries: rows, as of ``mhim.evaluation.summarise``.
        resamples: draws of cases, the same for all comparisons.

    Raises:
        ConfigError: one row only, or rows with other seeds.
        CohortError: rows whose folds hold other slides.
    """
    if len(summaries) < 2:
        raise ConfigError("all runs given are of one configuration (its seeds); give runs of another model or method")
    opened = {run.path: run for run in runs}
    first, *others = summaries
    base = _by_seed(first, opened)
    before = _folds(base)
    metric = next(iter(runs[0].task.metrics))
    draws, ratio = draws_of(before, resamples), _test_over_train(base.values())
    found = []
    for other in others:
        members = _by_seed(other, opened)
        if members.keys() != base.keys():
            theirs, ours = (", ".join(map(str, seeds)) for seeds in (members, base))
            raise ConfigError(
                f"{other.title} has seed {theirs}, but {first.title} seed {ours}; a paired comparison needs the runs "
                f"of equal seeds"
            )
        try:
            found.append(compare_paired(before, _folds(members), draws, ratio, metric))
        except CohortError as error:
            raise CohortError(f"{other.runs[0]} against {first.runs[0]}: {error}") from None
    return correct_for_many(found)


def _by_seed(summary: Summary, opened: Mapping[Path, Run]) -> dict[int, Run]:
    """The runs of a row by their seed, in rising order.

    Raises:
        ConfigError: two runs of one seed.
    """
    members = sorted((opened[path] for path in summary.runs), key=lambda run: run.config.seed)
    by_seed = {run.config.seed: run for run in members}
    if len(by_seed) < len(members):
        raise ConfigError(f"{summary.title}: two runs of one seed; a paired comparison takes one run a seed")
    return by_seed


def _folds(runs: Mapping[int, Run]) -> list[Any]:
    return [fold for run in runs.values() for fold in fold_predictions(run)]


def _test_over_train(runs: Collection[Run]) -> float:
    """Test slides a training slide, mean over the folds of all runs."""
    facts = [run.fold_info(fold) for run in runs for fold in run.folds]
    return float(np.mean([each["n_test"] / each["n_train"] for each in facts]))


def paired_rows(summaries: Sequence[Summary], pairs: Sequence[PairedComparison]) -> list[list[str]]:
    """Rows under ``HEADER``: one question a line."""
    rows = []
    for summary, pair in zip(summaries[1:], pairs, strict=True):
        lines = [("other patients? case bootstrap", pair.bootstrap, pair.bootstrap_p, pair.bootstrap_holm_p)]
        if pair.delong is not None:
            asked = "other patients? DeLong, correlated AUROCs"
            lines.append((asked, pair.delong.interval, pair.delong.p_value, pair.delong_holm_p))
        test = pair.corrected_t
        asked = "other training sets? corrected t-test"
        if test is None:
            lines.append((asked + ", undefined", None, None, None))
        else:
            lines.append((f"{asked}, {test.degrees} degrees", test.interval, test.p_value, pair.holm_p))
        for number, (question, interval, p, holm) in enumerate(lines):
            names = [summary.title, summaries[0].title] if number == 0 else ["", ""]
            rows.append(
                [*names, question, format_estimate(Estimate(pair.difference, interval), sign=True), _p(p), _p(holm)]
            )
    return rows


def paired_notes(summaries: Sequence[Summary], pairs: Sequence[PairedComparison], resamples: int) -> list[str]:
    """Sentences under the table: what was asked, and the differences part by part."""
    notes = [
        QUESTIONS + f" Holm's correction over {len(pairs)} comparison{'s' * (len(pairs) != 1)}, {resamples} resamples."
    ]
    for summary, pair in zip(summaries[1:], pairs, strict=True):
        parts = ", ".join("-" if each is None else f"{each:+.3f}" for each in pair.per_part)
        better = sum(each is not None and each > 0 for each in pair.per_part)
        notes.append(
            f"{summary.title}: {NAMES.get(pair.metric, pair.metric)} better in {better} of {len(pair.per_part)} parts "
            f"(seed by seed, fold by fold): {parts}"
        )
    return notes


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else "<0.001"
