"""Pictures of a comparison: ROC curves with bands, and a forest plot of AUROC and of its paired differences."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mhim.artefacts import atomic_path
from mhim.compare.table import Results, Row
from mhim.evaluation import Estimate, mean_over_folds
from mhim.metrics import Predictions
from mhim.report.curves import GRID, ROC, roc
from mhim.resampling import CaseDraws

INK, GREY, BLUE, ORANGE = "#1f2328", "#8c959f", "#0969da", "#bc4c00"
PER_LINE = 4


def write_plots(results: Results, out: Path) -> list[Path]:
    """Write ``roc.png`` and ``forest.png``; their paths."""
    paths = [out / "roc.png", out / "forest.png"]
    for path, figure in zip(paths, (roc_figure(results), forest_figure(results)), strict=True):
        _save(figure, path)
    return paths


def roc_figure(results: Results) -> Figure:
    """One panel an entry: mean ROC curve over folds and seeds, with the 95 % band of the case bootstrap."""
    n_lines = -(-len(results.rows) // PER_LINE)
    n_columns = min(PER_LINE, len(results.rows))
    figure = Figure(figsize=(2.6 * n_columns, 2.75 * n_lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_lines, n_columns, sharex=True, sharey=True, squeeze=False)
    curves = [mean_roc(row) for row in results.rows]
    for panel, row, curve in zip(panels.flat, results.rows, curves, strict=False):
        colour = BLUE if row.entry.method == "supervised" else ORANGE
        limits = roc_band(row, results.draws)
        if limits is not None:
            panel.fill_between(GRID, *limits, color=colour, alpha=0.2, linewidth=0)
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        if curves[0] is not None and row is not results.rows[0]:
            panel.plot(GRID, curves[0], color=GREY, linewidth=1)
        if curve is not None:
            panel.plot(GRID, curve, color=colour, linewidth=1.6)
        value = row.estimates["auroc"].value
        _title(panel, row.entry.name if value is None else f"{row.entry.name}  {100 * value:.1f} %")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.tick_params(labelsize=7, colors=INK)
    for panel in panels.flat[len(results.rows) :]:
        panel.set_visible(False)
    figure.supxlabel("false positive rate", fontsize=9, color=INK)
    figure.supylabel("true positive rate", fontsize=9, color=INK)
    figure.suptitle(
        f"Mean ROC curve over folds and seeds, 95 % band over cases; grey: {results.rows[0].entry.name}",
        fontsize=9,
        color=INK,
    )
    return figure


def mean_roc(row: Row) -> NDArray[np.float64] | None:
    """(101,) true positive rate at each false positive rate of the grid, averaged over folds, seeds and classes."""
    curves = [
        np.interp(GRID, *points)
        for folds in row.runs
        for fold in folds
        for index in fold.scored_classes
        if (points := roc(fold, index)) is not None
    ]
    return None if not curves else _from_origin(np.mean(curves, axis=0))


def _from_origin(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve, beginning at (0, 0); interpolation puts the end of a vertical rise there."""
    return np.concatenate([[0.0], curve[1:]])


def roc_band(
    row: Row, draws: CaseDraws, resamples: int = 200
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(low, high) of the mean curve: 95 % of the case resamples, every fold re-weighted by the same draw."""
    drawn = CaseDraws(draws.cases, draws.counts[:resamples])
    total, count = np.zeros((len(drawn.counts), len(GRID))), np.zeros((len(drawn.counts), 1))
    for folds in row.runs:
        for fold in folds:
            for index in fold.scored_classes:
                curves, usable = _resampled(fold, index, drawn)
                total[usable] += curves
                count[usable] += 1
    whole = count[:, 0] > 0
    if 2 * whole.sum() < len(whole):
        return None
    low, high = np.quantile(total[whole] / count[whole], [0.025, 0.975], axis=0)
    return _from_origin(low), _from_origin(high)


def _resampled(fold: Predictions, index: int, draws: CaseDraws) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Curves of the resamples that hold both classes, and which those are."""
    positive, score = fold.y_true == index, fold.probabilities[:, index]
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    weights = draws.weights(fold.case_id)[:, order]
    hits = (weights * positive[order]).cumsum(axis=1)[:, last]
    alarms = (weights * ~positive[order]).cumsum(axis=1)[:, last]
    usable = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
    return ROC.resampled(hits[usable], alarms[usable]), usable


def forest_figure(results: Results) -> Figure:
    """AUROC of every entry with its interval and each seed's mean, and paired differences to the first entry."""
    rows = results.rows
    figure = Figure(figsize=(8.5, 1.3 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    heights = np.arange(len(rows))[::-1]
    for height, row in zip(heights, rows, strict=True):
        colour = BLUE if row.entry.method == "supervised" else ORANGE
        _whisker(left, row.estimates["auroc"], height, colour)
        for value in _seed_means(row):
            left.plot(100 * value, height - 0.24, marker="|", markersize=5, color=GREY)
        if row.difference is not None:
            _whisker(right, Estimate(row.difference.difference, row.difference.bootstrap), height, colour)
            if row.difference.bootstrap_holm_p is not None:  # of the interval that is drawn: other patients
                text = f"p {row.difference.bootstrap_holm_p:.3f}"
                right.annotate(
                    text, (1.01, height), xycoords=("axes fraction", "data"), fontsize=7, va="center", color=INK
                )
    right.axvline(0, color=GREY, linewidth=0.8)
    left.set_yticks(heights, [row.entry.name for row in rows])
    left.set_ylim(-0.7, len(rows) - 0.3)
    left.set_xlabel("AUROC, % (95 % interval; ticks below: seeds)", fontsize=8, color=INK)
    right.set_xlabel(f"difference to {rows[0].entry.name}, percentage points (cases; p: Holm)", fontsize=8, color=INK)
    for panel in (left, right):
        panel.tick_params(labelsize=8, colors=INK)
        panel.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    return figure


def _seed_means(row: Row) -> Sequence[float]:
    if len(row.runs) < 2:
        return []
    return [value for folds in row.runs if (value := mean_over_folds(folds, "auroc")) is not None]


def _whisker(panel: Any, estimate: Estimate, height: float, colour: str) -> None:
    if estimate.value is None:
        return
    if estimate.interval is not None:
        panel.plot([100 * limit for limit in estimate.interval], [height, height], color=colour, linewidth=1.6)
    panel.plot(100 * estimate.value, height, marker="o", markersize=5, color=colour)


def _title(panel: Any, text: str) -> None:
    panel.set_title(text, fontsize=9, color=INK)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
