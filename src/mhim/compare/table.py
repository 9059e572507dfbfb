"""The table of a comparison: AUROC with spread and interval, cost, and paired differences with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mhim.artefacts import write_text
from mhim.compare.cost import Cost
from mhim.compare.plan import Comparison, Entry
from mhim.compare.published import NOTE, ORAL, Published
from mhim.evaluation import Estimate, draws_of, fold_predictions, markdown_rows, mean_over_folds
from mhim.metrics import METRICS, Predictions
from mhim.paired import PairedComparison, compare_paired, correct_for_many
from mhim.resampling import CaseDraws, percentile_interval, resampled_mean
from mhim.training.runs import open_run, write_table

DIFFERENCE_COLUMNS = (
    "model",
    "compared_with",
    "difference",
    "cases_low",
    "cases_high",
    "cases_bootstrap_p",
    "cases_bootstrap_p_holm",
    "std_over_folds_and_seeds",
    "training_low",
    "training_high",
    "training_p",
    "training_p_holm",
    "cases_delong_p",
    "cases_delong_p_holm",
)


@dataclass(frozen=True)
class Row:
    """One entry, measured.

    Attributes:
        entry: what was trained.
        estimates: metric -> mean over all folds of all seeds, with its 95 % case-bootstrap interval.
        seed_std: population standard deviation of the seeds' mean AUROCs; None for one seed.
        fold_std: population standard deviation of AUROC over all folds of all seeds.
        cost: parameters, time, memory.
        runs: test predictions, one list of folds per seed.
        difference: to the first entry; None for the first.
    """

    entry: Entry
    estimates: Mapping[str, Estimate]
    seed_std: float | None
    fold_std: float | None
    cost: Cost
    runs: tuple[tuple[Predictions, ...], ...]
    difference: PairedComparison | None

    @property
    def std(self) -> float | None:
        """The spread of the table: over seeds, or over folds where there is one seed."""
        return self.fold_std if self.seed_std is None else self.seed_std


@dataclass(frozen=True)
class Results:
    """A comparison, measured; rows in the order of the entries."""

    comparison: Comparison
    rows: tuple[Row, ...]
    draws: CaseDraws

    def text_table(self, oral: bool) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people: AUROC in percent, as in the talk."""
        spread = "seeds" if len(self.comparison.protocol.seeds) > 1 else "folds"
        header = ["model", f"AUROC, % ± std over {spread} [95 % CI]", "parameters", "s/epoch", "peak memory, MB"]
        if oral:
            header += ["oral C16 AUC", "oral TCGA AUC", "oral parameters, s/epoch, memory"]
        return header, [self._texts(row, oral) for row in self.rows]

    def difference_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the differences to the first entry, in percent: two questions, each with its p."""
        name = self.rows[0].entry.name
        header = [f"minus {name}", "difference, %", "other patients? [95 % CI]", "p (Holm)"]
        header += ["other training sets? [95 % CI]", "p (Holm)"]
        return header, [_differences(row.entry.name, row.difference) for row in self.rows if row.difference is not None]

    def _texts(self, row: Row, oral: bool) -> list[str]:
        cost = row.cost
        memory = "-" if cost.peak_memory_mb is None else f"{cost.peak_memory_mb:.0f}"
        texts = [
            row.entry.name,
            percent(row.estimates["auroc"], row.std),
            count_text(cost.parameters),
            f"{cost.seconds:.2f}",
            memory,
        ]
        return texts + (_oral_texts(ORAL.get(row.entry.name)) if oral else [])

    def protocol(self, oral: bool) -> list[str]:
        """Sentences that say how the numbers were made."""
        comparison, cost = self.comparison, self.rows[0].cost
        n_seeds, n_folds = len(comparison.protocol.seeds), len(next(iter(comparison.folds.values())).folds)
        made = "from a given table" if comparison.protocol.splits else "drawn with each seed"
        if comparison.protocol.split.use_fold_column and not comparison.protocol.splits:
            made = "test parts from the column 'fold', validation parts drawn with each seed"
        time = "processor time" if cost.device == "cpu" else "wall time"
        sentences = [
            f"{Path(comparison.cohort.source).name}: {len(comparison.cohort.case_labels())} cases, "
            f"{len(comparison.cohort)} slides; {n_folds} folds by case ({made}) and {n_seeds} "
            f"seed{'s' * (n_seeds > 1)}, the same for every row. {_chosen(comparison)}",
            "AUROC: mean over folds and seeds; interval: case bootstrap, "
            f"{len(self.draws.counts)} resamples, the same draws for every row.",
            f"Parameters: of the deployed model. Seconds: median {time} of an epoch over the training bags of fold "
            f"0, bags in memory, on {cost.device} with {cost.threads} thread{'s' * (cost.threads > 1)}; memory: "
            f"{'growth of the process' if cost.device == 'cpu' else 'allocated'} at the peak of these epochs.",
        ]
        if len(self.rows) > 1:
            sentences.insert(2, _questions(len(self.rows) - 1))
        return sentences + ([NOTE] if oral else [])


def measure(comparison: Comparison, entries: Sequence[Entry], costs: Mapping[str, Cost], resamples: int) -> Results:
    """Score the runs of some entries; they must be complete."""
    runs = {
        entry: tuple(tuple(fold_predictions(open_run(run.folder))) for run in comparison.of(entry)) for entry in entries
    }
    together = {entry: [fold for folds in seeds for fold in folds] for entry, seeds in runs.items()}
    draws = draws_of(next(iter(runs.values()))[0], resamples)
    resampled = {
        entry: {name: resampled_mean(folds, name, draws) for name in METRICS} for entry, folds in together.items()
    }
    first, *others = entries
    draws_and_ratio = draws, _test_over_train(comparison)
    pairs = [compare_paired(together[first], together[other], *draws_and_ratio) for other in others]
    differences = dict(zip(others, correct_for_many(pairs), strict=True))
    rows = []
    for entry in entries:
        means = [mean_over_folds(folds, "auroc") for folds in runs[entry]]
        by_fold = [METRICS["auroc"](fold) for fold in together[entry]]
        estimates = {
            name: Estimate(mean_over_folds(together[entry], name), percentile_interval(values))
            for name, values in resampled[entry].items()
        }
        seed_std = _std(means) if len(means) > 1 else None
        rows.append(
            Row(entry, estimates, seed_std, _std(by_fold), costs[entry.name], runs[entry], differences.get(entry))
        )
    return Results(comparison, tuple(rows), draws)


def _test_over_train(comparison: Comparison) -> float:
    """Test cases per training case, mean over all folds."""
    folds = [fold for splits in comparison.folds.values() for fold in splits.folds]
    return float(np.mean([len(fold.test) / len(fold.train) for fold in folds]))


def _std(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.std(defined)) if defined else None


def percent(estimate: Estimate, std: float | None, sign: bool = False) -> str:
    """``95.10 ± 0.40 [93.20, 96.90]``."""
    if estimate.value is None:
        return "-"
    plus = "+" if sign else ""
    text = f"{100 * estimate.value:{plus}.2f}"
    if std is not None:
        text += f" ± {100 * std:.2f}"
    if estimate.interval is not None:
        low, high = (100 * limit for limit in estimate.interval)
        text += f" [{low:{plus}.2f}, {high:{plus}.2f}]"
    return text


def _questions(count: int) -> str:
    """What the two intervals and p-values of a difference answer."""
    many = f"with Holm's correction over the {count} differences" if count > 1 else "of one difference, uncorrected"
    return (
        "Differences: mean over the paired folds and seeds. Two questions, each with its own interval and p, which may "
        "disagree. Other patients: the trained models are given, cases vary (case bootstrap). Other training sets: "
        "folds and seeds vary (corrected resampled t-test). Intervals are of one difference alone; p "
        f"{many}. differences.csv adds each uncorrected p and DeLong's test."
    )


def _differences(name: str, pair: PairedComparison) -> list[str]:
    value = "-" if pair.difference is None else f"{100 * pair.difference:+.2f}"
    training = None if pair.corrected_t is None else pair.corrected_t.interval
    return [name, value, _limits(pair.bootstrap), _p(pair.bootstrap_holm_p), _limits(training), _p(pair.holm_p)]


def _chosen(comparison: Comparison) -> str:
    """What chose the epoch."""
    caution = comparison.selection.caution
    if caution is not None:
        return f"CAUTION, {caution}."
    return "An inner validation part chose the epoch; the test parts were scored once."


def _limits(interval: tuple[float, float] | None) -> str:
    """``[-0.40, +2.10]`` in percent."""
    return "-" if interval is None else f"[{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def count_text(count: int) -> str:
    """``96``, ``657K``, ``2.67M``."""
    if count < 1000:
        return str(count)
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def _oral_texts(row: Published | None) -> list[str]:
    if row is None:
        return ["-", "-", "-"]
    cost = "-"
    if row.parameters is not None:
        cost = f"{row.parameters}, {row.seconds_per_epoch}, {row.memory_gb} GB"
    return [f"{row.camelyon16[0]:.2f} ± {row.camelyon16[1]:.2f}", f"{row.tcga[0]:.2f} ± {row.tcga[1]:.2f}", cost]


def _record(row: Row, oral: bool) -> dict[str, Any]:
    """One line of table.csv: AUROC in [0, 1], published AUC in percent as printed."""
    record: dict[str, Any] = {"model": row.entry.name, "aggregator": row.entry.model, "method": row.entry.method}
    record |= {"seeds": len(row.runs), "folds": sum(len(folds) for folds in row.runs)}
    for name, estimate in row.estimates.items():
        low, high = estimate.interval or (None, None)
        record |= {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
    record |= {"auroc_seed_std": row.seed_std, "auroc_fold_std": row.fold_std, **vars(row.cost)}
    if oral:
        published = ORAL.get(row.entry.name)
        record |= {"oral_camelyon16_auc": published and published.camelyon16[0]}
        record |= {"oral_tcga_nsclc_auc": published and published.tcga[0]}
    return record


def write_tables(results: Results, out: Path, oral: bool) -> list[Path]:
    """Write ``table.csv``, ``table.md`` and ``differences.csv``; their paths."""
    paths = [out / "table.csv", out / "table.md", out / "differences.csv"]
    write_table(paths[0], pd.DataFrame([_record(row, oral) for row in results.rows]))
    tables = [results.text_table(oral)] + [results.difference_table()] * (len(results.rows) > 1)
    texts = [markdown_rows(*table) for table in tables] + [f"{text}\n" for text in results.protocol(oral)]
    write_text(paths[1], "\n".join(texts))
    first = results.rows[0].entry.name
    changes = [_change(row.entry.name, first, row.difference) for row in results.rows if row.difference is not None]
    write_table(paths[2], pd.DataFrame(changes, columns=DIFFERENCE_COLUMNS))
    return paths


def _change(name: str, other: str, pair: PairedComparison) -> dict[str, Any]:
    """One line of differences.csv."""
    values = [name, other, pair.difference, *(pair.bootstrap or (None, None)), pair.bootstrap_p]
    values += [pair.bootstrap_holm_p, pair.std]
    corrected, delong = pair.corrected_t, pair.delong
    values += [None] * 4 if corrected is None else [*corrected.interval, corrected.p_value, pair.holm_p]
    values += [None if delong is None else delong.p_value, pair.delong_holm_p]
    return dict(zip(DIFFERENCE_COLUMNS, values, strict=True))
