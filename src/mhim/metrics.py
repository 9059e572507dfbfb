"""Metrics of slide predictions, and case-bootstrap intervals around them.

Point values come from scikit-learn; an undefined one (a part with one class) is None, never a
number. Resampling needs the same metrics for a thousand weightings at once; ``mhim.resampling`` has
them in array form, and the tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score, roc_curve

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


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


METRICS: dict[str, Callable[[Predictions], float | None]] = {
    "auroc": auroc,
    "auprc": auprc,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
}


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
