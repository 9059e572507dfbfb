"""Metrics of slide predictions: discrimination, decisions, and whether probabilities mean what they say.

Point values come from scikit-learn where it has them; an undefined one (a part with one class) is None, never a
number. Resampling needs the same metrics for a thousand weightings at once; ``mhim.resampling`` has them in array
form, and the tests hold both against each other.

``METRICS`` are the headline of every table, ``FURTHER_METRICS`` stand beside them; ``LOWER_IS_BETTER`` names errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
    roc_curve,
)

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]

FIXED_RATE = 0.95
"""Specificity (sensitivity) at which sensitivity (specificity) is given."""

ECE_BINS = 10
SMALLEST_PROBABILITY = 1e-15
"""A probability counts as at least this in the log loss, so that one sure error costs 34.5 and not infinity."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for M slides.

    Attributes:
        case_id: (M,) owner of each slide.
        y_true: (M,) int64 class index.
        y_pred: (M,) int64 class index, by the threshold that validation chose.
        probabilities: (M, C) float64.
    """

    case_id: NDArray[np.str_]
    y_true: Labels
    y_pred: Labels
    probabilities: Probabilities

    def __len__(self) -> int:
        return len(self.y_true)

    @property
    def n_classes(self) -> int:
        """Number of classes C."""
        return self.probabilities.shape[1]

    @property
    def scored_classes(self) -> range:
        """Classes whose one-against-the-rest scores are averaged: class 1 alone for two classes."""
        return range(1, 2) if self.n_classes == 2 else range(self.n_classes)


def auroc(predictions: Predictions) -> float | None:
    """Area under the ROC curve; one against the rest, macro-averaged, for more than two classes."""
    return _over_classes(roc_auc_score, predictions)


def auprc(predictions: Predictions) -> float | None:
    """Average precision; macro-averaged over one against the rest for more than two classes."""
    return _over_classes(average_precision_score, predictions)


def _over_classes(score: Callable[..., float], predictions: Predictions) -> float | None:
    values = []
    for index in predictions.scored_classes:
        positive = predictions.y_true == index
        if positive.all() or not positive.any():
            return None
        values.append(float(score(positive, predictions.probabilities[:, index])))
    return float(np.mean(values))


def balanced_accuracy(predictions: Predictions) -> float | None:
    """Mean recall over classes; None when a class is absent."""
    if len(np.unique(predictions.y_true)) < predictions.n_classes:
        return None
    return float(balanced_accuracy_score(predictions.y_true, predictions.y_pred))


def f1(predictions: Predictions) -> float | None:
    """F1 of the positive class; macro-averaged for more than two classes; None when a class is absent."""
    if len(np.unique(predictions.y_true)) < predictions.n_classes:
        return None
    average = "binary" if predictions.n_classes == 2 else "macro"
    return float(f1_score(predictions.y_true, predictions.y_pred, average=average, zero_division=0.0))  # pyright: ignore[reportArgumentType]  (stub says str)


def accuracy(predictions: Predictions) -> float | None:
    """Share of slides called right, at the threshold that validation chose; None without slides."""
    return float(np.mean(predictions.y_pred == predictions.y_true)) if len(predictions) else None


def kappa(predictions: Predictions) -> float | None:
    """Cohen's kappa, unweighted: agreement beyond chance; None where chance alone agrees fully.

    Source: Cohen, Educational and Psychological Measurement 1960.
    """
    said, true = np.unique(predictions.y_pred), np.unique(predictions.y_true)
    if len(predictions) == 0 or (len(said) == 1 and np.array_equal(said, true)):
        return None
    return float(cohen_kappa_score(predictions.y_true, predictions.y_pred))


def sensitivity_at_specificity(predictions: Predictions, specificity: float = FIXED_RATE) -> float | None:
    """Highest sensitivity that a threshold with at least this specificity reaches, without interpolation.

    The threshold is chosen on the slides scored: this describes the ROC curve, it is no operating point (those come
    from validation, ``mhim.calibration``). Macro-averaged over one against the rest for more than two classes.
    """

    def best(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
        fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
        return float(tpr[fpr <= 1 - specificity + 1e-12].max())

    return _over_classes(best, predictions)


def specificity_at_sensitivity(predictions: Predictions, sensitivity: float = FIXED_RATE) -> float | None:
    """Highest specificity that a threshold with at least this sensitivity reaches; see the converse."""

    def best(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
        fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
        return 1 - float(fpr[tpr >= sensitivity - 1e-12].min())

    return _over_classes(best, predictions)


def log_loss(predictions: Predictions) -> float | None:
    """Mean of -log(probability of the true class), natural logarithm; None without slides."""
    return float(slide_log_loss(predictions).mean()) if len(predictions) else None


def brier(predictions: Predictions) -> float | None:
    """Brier score: mean of (p - y)^2 of class 1 for two classes (0 to 1), summed over classes for more (0 to 2).

    Source: Brier, Monthly Weather Review 1950; the two-class form is half of the sum. None without slides.
    """
    return float(slide_brier(predictions).mean()) if len(predictions) else None


def slide_log_loss(predictions: Predictions) -> NDArray[np.float64]:
    """(M,) loss of each slide; see :func:`log_loss`."""
    own = predictions.probabilities[np.arange(len(predictions)), predictions.y_true]
    return -np.log(np.clip(own, SMALLEST_PROBABILITY, 1.0))


def slide_brier(predictions: Predictions) -> NDArray[np.float64]:
    """(M,) squared error of each slide; see :func:`brier`."""
    wanted = np.eye(predictions.n_classes)[predictions.y_true]
    apart = np.square(predictions.probabilities - wanted)
    return apart[:, 1] if predictions.n_classes == 2 else apart.sum(axis=1)


def said_and_happened(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(M,) what was promised and (M,) whether it came true: what calibration compares.

    Two classes: the probability of class 1, and whether the slide is of class 1. More: the probability of the most
    probable class, and whether the slide is of it ("top label").
    """
    if predictions.n_classes == 2:
        return predictions.probabilities[:, 1], predictions.y_true == 1
    return predictions.probabilities.max(axis=1), predictions.y_true == predictions.probabilities.argmax(axis=1)


def equal_width_bins(said: NDArray[np.float64], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """(M,) bin of each value among ``bins`` equal parts of [0, 1]; a bin holds its left edge, the last one also 1."""
    return np.clip((said * bins).astype(np.int64), 0, bins - 1)


def equal_mass_bins(said: NDArray[np.float64], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """(M,) bin of each value so that bins hold equally many slides as far as possible; equal values share a bin."""
    order = np.sort(said)
    first = np.searchsorted(order, said, side="left")
    return np.minimum(first * bins // max(len(said), 1), bins - 1).astype(np.int64)


def ece(predictions: Predictions, bins: int = ECE_BINS, equal_mass: bool = False) -> float | None:
    """Expected calibration error: mean over slides of |observed share - mean promise| of the slide's bin.

    Bins are of equal width, or of equal mass. What is compared: :func:`said_and_happened`. It is biased upwards
    in small samples; None without slides. Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3.
    """
    if not len(predictions):
        return None
    said, happened = said_and_happened(predictions)
    place = (equal_mass_bins if equal_mass else equal_width_bins)(said, bins)
    return float(np.abs(np.bincount(place, said - happened, bins)).sum() / len(said))


METRICS: dict[str, Callable[[Predictions], float | None]] = {
    "auroc": auroc,
    "auprc": auprc,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
}

FURTHER_METRICS: dict[str, Callable[[Predictions], float | None]] = {
    "accuracy": accuracy,
    "kappa": kappa,
    "sensitivity_at_95_specificity": sensitivity_at_specificity,
    "specificity_at_95_sensitivity": specificity_at_sensitivity,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
}

ALL_METRICS = METRICS | FURTHER_METRICS
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece"})


def youden_threshold(y_true: Labels, probability: NDArray[np.float64]) -> float:
    """Threshold on the positive class that maximises TPR - FPR, in the middle of its gap between scores.

    Chosen on validation slides and applied to test slides (positive at p >= threshold). Among equal
    maxima the highest threshold; above every score where none separates better than chance. With one
    class only, 0.5.
    """
    if len(np.unique(y_true)) < 2:
        return 0.5
    fpr, tpr, thresholds = roc_curve(y_true, probability, drop_intermediate=False)
    chosen = float(thresholds[int(np.argmax(tpr - fpr))])
    if np.isinf(chosen):  # no slide is called positive
        chosen = max(1.0, float(np.nextafter(probability.max(), 2.0)))
    below = probability[probability < chosen]
    middle = (chosen + float(below.max())) / 2 if len(below) else chosen
    return middle if not len(below) or middle > below.max() else chosen


def predict_classes(probabilities: Probabilities, threshold: float | None) -> Labels:
    """Class per slide: by threshold on class 1 for two classes, else the most probable."""
    if probabilities.shape[1] == 2 and threshold is not None:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    return probabilities.argmax(axis=1).astype(np.int64)
