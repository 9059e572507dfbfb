"""The curves of a run: ROC, precision-recall, calibration, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from mhim.calibration import decision_curve
from mhim.evaluation import draws_of, fold_predictions, pooled
from mhim.metrics import Predictions
from mhim.report.svg import Axes, Band, Dots, Line, chart, span
from mhim.resampling import CaseDraws
from mhim.training.runs import Run

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
GRID = np.linspace(0, 1, 101)
Curves = Sequence[tuple[str, str, tuple[float, float] | None]]
FEW_SLIDES = 100
TRAINED: Curves = (
    ("train_classification", "training loss", None),
    ("train_bag", "training loss", None),
    ("val_loss", "validation loss", None),
    ("val_auroc", "validation AUROC", (0.0, 1.0)),
    ("val_c_index", "validation C-index", (0.0, 1.0)),
    ("train_consistency", "consistency loss", None),
)
LEGEND = (("fold", "folds"), ("pooled", "pooled"), ("band", "95 % band (cases)"), ("chance", "chance"))


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and, where lines are told apart by colour, their names with their CSS classes."""

    svg: Markup
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


def curves(run: Run, resamples: int) -> list[Figure]:
    """ROC and precision-recall curve of each scored class, calibration, and for two classes the net benefit."""
    folds = fold_predictions(run)
    draws = draws_of(folds, resamples)
    kinds = [_curves(run, folds, index, draws, kind) for index in pooled(folds).scored_classes for kind in (ROC, PR)]
    return [*kinds, calibration(run), *([net_benefit(run)] if len(run.classes) == 2 else [])]


def _curves(run: Run, folds: list[Predictions], index: int, draws: CaseDraws, kind: CurveKind) -> Figure:
    together = pooled(folds)
    share = float((together.y_true == index).mean())
    marks: list[Line | Band | Dots] = []
    if (limits := band(together, index, draws, kind.resampled)) is not None:
        marks.append(Band(GRID, *limits))
    marks.append(Line([0, 1], [0, 1] if kind is ROC else [share, share], "chance", label="chance"))
    for number, fold in enumerate(folds):
        if (points := kind.points(fold, index)) is not None:
            marks.append(Line(*points, css="fold", label=f"fold {number}"))
    if (points := kind.points(together, index)) is not None:
        marks.append(Line(*points, css="pooled", label="pooled"))
    caption = f"{kind.title}, class {run.classes[index]}"
    axes = Axes(
        kind.x_name, kind.y_name, f"{caption}, {run.config.title}, per fold and pooled, with a 95 % bootstrap band"
    )
    return Figure(chart(axes, marks), caption, LEGEND)


def roc(predictions: Predictions, index: int) -> Curve | None:
    """(false positive rate, true positive rate), None with one class only."""
    positive = predictions.y_true == index
    if positive.all() or not positive.any():
        return None
    fpr, tpr, _ = roc_curve(positive, predictions.probabilities[:, index], drop_intermediate=True)
    return fpr, tpr


def precision_recall(predictions: Predictions, index: int) -> Curve | None:
    """(recall, precision) as steps, None without a positive or a negative slide."""
    positive = predictions.y_true == index
    if positive.all() or not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive, predictions.probabilities[:, index])
    reached, first = np.unique(recall[::-1], return_index=True)  # precision where each recall is first reached
    return np.repeat(reached, 2)[1:-1], np.repeat(precision[::-1][first][1:], 2)


def band(
    predictions: Predictions,
    index: int,
    draws: CaseDraws,
    resampled: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> Curve | None:
    """(low, high) of a curve on ``GRID``: 95 % of the case resamples that hold both classes."""
    positive = predictions.y_true == index
    score = predictions.probabilities[:, index]
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    drawn = draws.weights(predictions.case_id)[:, order]
    hits = (drawn * positive[order]).cumsum(axis=1)[:, last]
    alarms = (drawn * ~positive[order]).cumsum(axis=1)[:, last]
    usable = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
    if 2 * usable.sum() < len(usable):
        return None
    curves = resampled(hits[usable], alarms[usable])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high


def roc_points(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 101) true positive rate at each false positive rate of ``GRID``.

    Args:
        hits: (B, T) positives found down to each threshold.
        alarms: (B, T) negatives found down to each threshold.
    """
    zero = np.zeros((len(hits), 1))
    tpr = np.hstack([zero, hits / hits[:, -1:]])
    fpr = np.hstack([zero, alarms / alarms[:, -1:]])
    return np.array([np.interp(GRID, x, y) for x, y in zip(fpr, tpr, strict=True)])


def precision_points(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 101) precision where each recall of ``GRID`` is first reached."""
    recall = hits / hits[:, -1:]
    precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits > 0)
    wanted = np.maximum(GRID, 1e-9)
    return np.array([y[np.searchsorted(x, wanted - 1e-12)] for x, y in zip(recall, precision, strict=True)])


@dataclass(frozen=True)
class CurveKind:
    """A family of curves: its names, its points, and its values on ``GRID`` under resampling."""

    title: str
    x_name: str
    y_name: str
    points: Callable[[Predictions, int], Curve | None]
    resampled: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


ROC = CurveKind("ROC curve", "false positive rate", "true positive rate", roc, roc_points)
PR = CurveKind("Precision-recall curve", "recall", "precision", precision_recall, precision_points)


def calibration(run: Run) -> Figure:
    """Reliability diagram of the pooled test predictions: mean said against observed, dot area by slides."""
    together = pooled(fold_predictions(run))
    two = together.n_classes == 2
    said = together.probabilities[:, 1] if two else together.probabilities.max(axis=1)
    happened = together.y_true == (1 if two else together.probabilities.argmax(axis=1))
    n_bins = 5 if len(together) < FEW_SLIDES else 10
    bins = np.minimum((said * n_bins).astype(np.int64), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    full = counts > 0
    mean_said = np.bincount(bins, said, n_bins)[full] / counts[full]
    observed = np.bincount(bins, happened, n_bins)[full] / counts[full]
    brier = float(np.mean((said - happened) ** 2))
    what = f"probability of {run.classes[1]}" if two else "probability of the predicted class"
    text = f"Reliability diagram of {run.config.title}: observed share against predicted {what}"
    marks = [
        Line([0, 1], [0, 1], "chance", label="perfect calibration"),
        Line(mean_said, observed, "pooled"),
        Dots(mean_said, observed, 20 + 380 * counts[full] / counts.sum()),
    ]
    caption = f"Calibration; Brier score {brier:.3f}; dot area = slides in the bin"
    return Figure(chart(Axes(f"predicted {what}", "observed share", text), marks), caption)


def net_benefit(run: Run) -> Figure:
    """Decision curve of the pooled test predictions; what lies far below 0 is left out."""
    found = decision_curve(pooled(fold_predictions(run)))
    top = max(float(found.model.max()), float(found.everyone.max()))
    shown = (-0.25 * top, 1.1 * top)
    near = found.everyone >= shown[0]
    marks = [
        Line([0, 1], [0, 0], "fold", label="nobody is called positive"),
        Line(found.threshold[near], found.everyone[near], "chance", label="everybody is called positive"),
        Line(found.threshold, np.maximum(found.model, shown[0]), "pooled", label="by the model"),
    ]
    text = f"Decision curve of {run.config.title}: net benefit by threshold probability, folds pooled"
    axes = Axes("threshold probability", "net benefit", text, y_range=shown)
    legend = (("pooled", "by the model"), ("chance", "call everybody"), ("fold", "call nobody"))
    return Figure(
        chart(axes, marks), "Decision curve: right calls a slide less wrong ones at the odds p / (1 - p)", legend
    )


def training(run: Run) -> list[Figure]:
    """Losses and the validation score by epoch; a dot marks the chosen epoch."""
    return by_epoch(run, TRAINED)


def by_epoch(run: Run, columns: Curves) -> list[Figure]:
    """One chart a column of the history that has values, one line a fold; a dot marks the chosen epoch.

    Args:
        run: a complete run.
        columns: column, name in words and range of values (None: from 0, or the lowest value, to the highest).
    """
    histories = [run.history(fold) for fold in run.folds]
    best = [int(run.fold_info(fold)["best_epoch"]) for fold in run.folds]
    figures = []
    longest = max(len(history) for history in histories)
    for column, name, y_range in columns:
        drawn = [
            (fold, Line(history["epoch"], history[column], f"c{fold % 8}", dot, f"fold {fold}"))
            for fold, history, dot in zip(run.folds, histories, best, strict=True)
            if column in history and history[column].notna().to_numpy().any()
        ]
        if not drawn:
            continue
        lines = [line for _, line in drawn]
        text = f"{name} of {run.config.title} by epoch, one line a fold"
        axes = Axes(
            "epoch",
            name,
            text,
            (0.0, float(max(longest - 1, 1))),
            y_range or span([line.y for line in lines]),
            whole_x=True,
        )
        legend = tuple((f"c{fold % 8}", f"fold {fold}") for fold, _ in drawn)
        figures.append(Figure(chart(axes, lines), f"{name[0].upper()}{name[1:]}", legend))
    return figures
