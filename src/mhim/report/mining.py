"""What a masking method hid from its student, by epoch and at the chosen epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mhim.report.curves import Curves, Figure, by_epoch
from mhim.report.table import Table, number
from mhim.training.runs import Run

MINED: Curves = (
    ("kept_share", "kept share of instances", (0.0, 1.0)),
    ("mask_overlap", "mask shared with the epoch before", (0.0, 1.0)),
    ("high_overlap", "high set shared with the epoch before", (0.0, 1.0)),
    ("teacher_agreement", "agreement of teacher and student", None),
    ("attention_entropy", "entropy of the teacher's attention", (0.0, 1.0)),
    ("loss_kept", "loss on kept instances", None),
    ("loss_masked", "loss on masked instances", None),
    ("high_precision", "precision: tumour's share of the high set", (0.0, 1.0)),
    ("high_recall", "recall: share of the tumour in the high set", (0.0, 1.0)),
    ("tumour_kept", "share of the tumour that the student saw", (0.0, 1.0)),
)
"""Columns of a fold's history, their names and ranges."""


def mining(run: Run) -> list[Figure]:
    """Curves by epoch of what was mined; empty for a method that masks nothing."""
    return by_epoch(run, MINED) if _masks(run) else []


def mining_table(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """What was mined at the start, in the chosen epoch and at the end, mean over folds; None where no run masks."""
    known = [(name, run) for name, run in zip(names, runs, strict=True) if _masks(run)]
    rows = []
    for column, words, _ in MINED:
        cells = [cell for _, run in known for cell in _cells(run, column)]
        if set(cells) - {"-"}:
            rows.append([f"{words[0].upper()}{words[1:]}", *cells])
    header = [f"{name}: {when}" for name, _ in known for when in ("start", "chosen epoch", "end")]
    caption = "What was mined, mean over folds; start and end are the first and the last epoch that has the value"
    return Table(caption, ["what", *header], rows) if rows else None


def _masks(run: Run) -> bool:
    return any("kept_share" in run.history(fold) for fold in run.folds)


def _cells(run: Run, column: str) -> list[str]:
    """A column at the start, in the chosen epoch and at the end, mean over the folds that have it."""
    found: list[list[float]] = [[], [], []]
    for fold in run.folds:
        history, best = run.history(fold), int(run.fold_info(fold)["best_epoch"])
        if column not in history:
            continue
        epochs, values = history["epoch"].to_numpy(), history[column].to_numpy(dtype=np.float64)
        known = np.isfinite(values)
        for part, chosen in zip(
            found, (values[known][:1], values[known & (epochs == best)], values[known][-1:]), strict=True
        ):
            part += chosen.tolist()
    return [number(float(np.mean(part)) if part else None) for part in found]
