"""Case bootstrap: slides of one case stay together, and runs are compared on the same draws.

Every function takes weights (B, M): how often each of M slides is drawn in each of B resamples, and
returns (B,) values, NaN where a resample leaves the metric undefined (a class is not drawn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.metrics import (
    ECE_BINS,
    FIXED_RATE,
    Predictions,
    equal_width_bins,
    said_and_happened,
    slide_brier,
    slide_log_loss,
)
from mhim.survival import SurvivalPredictions, resampled_c_index, resampled_c_index_ipcw

Weights = NDArray[np.float64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class CaseDraws:
    """How often each case is drawn, with replacement, in each resample.

    Attributes:
        cases: (K,) sorted case names.
        counts: (B, K) draws; every row sums to K.
    """

    cases: NDArray[np.str_]
    counts: Weights

    @classmethod
    def draw(cls, cases: Sequence[str], resamples: int, seed: int) -> CaseDraws:
        """``resamples`` draws of as many cases as there are, equal for equal case sets and seeds."""
        names = np.unique(np.asarray(cases, dtype=np.str_))
        generator = np.random.default_rng(seed)
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        return cls(names, counts.astype(np.float64))

    def weights(self, case_id: NDArray[np.str_]) -> Weights:
        """(B, M) weights of slides by their case."""
        return self.counts[:, np.searchsorted(self.cases, case_id)]


def auroc(predictions: Predictions, weights: Weights) -> Values:
    """Weighted share of (positive, negative) pairs in the right order; ties count half."""

    def one(positive: NDArray[np.bool_], score: Values) -> Values:
        difference = score[positive][:, None] - score[~positive][None, :]
        order = (difference > 0) + 0.5 * (difference == 0)
        wins = ((weights[:, positive] @ order) * weights[:, ~positive]).sum(axis=1)
        return _ratio(wins, weights[:, positive].sum(axis=1) * weights[:, ~positive].sum(axis=1))

    return _mean_over_classes(predictions, one)


def auprc(predictions: Predictions, weights: Weights) -> Values:
    """Weighted average precision: sum over distinct scores of (recall step) x (precision there)."""

    def one(positive: NDArray[np.bool_], score: Values) -> Values:
        order = np.argsort(-score, kind="stable")
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # last slide of each tied group
        drawn = weights[:, order]
        hits = (drawn * positive[order]).cumsum(axis=1)[:, last]
        seen = drawn.cumsum(axis=1)[:, last]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        total = hits[:, -1]
        average = _ratio((np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1), total)
        return np.where(seen[:, -1] > total, average, np.nan)

    return _mean_over_classes(predictions, one)


def balanced_accuracy(predictions: Predictions, weights: Weights) -> Values:
    """Mean recall over classes."""
    recalls = [
        _ratio(weights @ (true & (predictions.y_pred == index)), weights @ true)
        for index in range(predictions.n_classes)
        for true in [predictions.y_true == index]
    ]
    return np.mean(recalls, axis=0)


def f1(predictions: Predictions, weights: Weights) -> Values:
    """F1 of the positive class, or macro-averaged for more than two classes."""
    scores = []
    for index in predictions.scored_classes:
        true, said = predictions.y_true == index, predictions.y_pred == index
        scores.append(2 * (weights @ (true & said)) / np.maximum(weights @ true + weights @ said, 1e-300))
    present = np.all([weights @ (predictions.y_true == index) > 0 for index in range(predictions.n_classes)], axis=0)
    return np.where(present, np.mean(scores, axis=0), np.nan)


def accuracy(predictions: Predictions, weights: Weights) -> Values:
    """Share of slides called right."""
    return _weighted_mean((predictions.y_pred == predictions.y_true).astype(np.float64), weights)


def kappa(predictions: Predictions, weights: Weights) -> Values:
    """Cohen's kappa: (agreement - chance) / (1 - chance)."""
    total = weights.sum(axis=1)
    shares = np.divide(weights, total[:, None], out=np.zeros_like(weights), where=total[:, None] > 0)
    agreed = shares @ (predictions.y_pred == predictions.y_true).astype(np.float64)
    chance = np.zeros(len(weights))
    for index in range(predictions.n_classes):
        said, true = predictions.y_pred == index, predictions.y_true == index
        chance += (shares @ said.astype(np.float64)) * (shares @ true.astype(np.float64))
    return _ratio(agreed - chance, np.where((total > 0) & (1 - chance > 1e-12), 1 - chance, 0.0))


def sensitivity_at_specificity(predictions: Predictions, weights: Weights) -> Values:
    """Highest sensitivity at a specificity of at least ``FIXED_RATE``."""

    def one(positive: NDArray[np.bool_], score: Values) -> Values:
        tpr, fpr = _rates(positive, score, weights)
        best = np.where(fpr <= 1 - FIXED_RATE + 1e-12, tpr, 0.0).max(axis=1)
        return np.where(np.isfinite(tpr[:, -1] + fpr[:, -1]), best, np.nan)

    return _mean_over_classes(predictions, one)


def specificity_at_sensitivity(predictions: Predictions, weights: Weights) -> Values:
    """Highest specificity at a sensitivity of at least ``FIXED_RATE``."""

    def one(positive: NDArray[np.bool_], score: Values) -> Values:
        tpr, fpr = _rates(positive, score, weights)
        best = np.where(tpr >= FIXED_RATE - 1e-12, 1 - fpr, 0.0).max(axis=1)
        return np.where(np.isfinite(tpr[:, -1] + fpr[:, -1]), best, np.nan)

    return _mean_over_classes(predictions, one)


def log_loss(predictions: Predictions, weights: Weights) -> Values:
    """Mean of -log(probability of the true class)."""
    return _weighted_mean(slide_log_loss(predictions), weights)


def brier(predictions: Predictions, weights: Weights) -> Values:
    """Brier score."""
    return _weighted_mean(slide_brier(predictions), weights)


def ece(predictions: Predictions, weights: Weights) -> Values:
    """Expected calibration error with bins of equal width."""
    said, happened = said_and_happened(predictions)
    in_bin = np.eye(ECE_BINS)[equal_width_bins(said)] * (said - happened)[:, None]
    return _ratio(np.abs(weights @ in_bin).sum(axis=1), weights.sum(axis=1))


RESAMPLED: dict[str, Callable[[Predictions, Weights], Values]] = {
    "auroc": auroc,
    "auprc": auprc,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "accuracy": accuracy,
    "kappa": kappa,
    "sensitivity_at_95_specificity": sensitivity_at_specificity,
    "specificity_at_95_sensitivity": specificity_at_sensitivity,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
}
RESAMPLED_SURVIVAL: dict[str, Callable[[Any, Weights], Values]] = {
    "c_index": resampled_c_index,
    "c_index_ipcw": resampled_c_index_ipcw,
}


def _rates(positive: NDArray[np.bool_], score: Values, weights: Weights) -> tuple[Weights, Weights]:
    """(B, T + 1) sensitivity and (B, T + 1) false positive rate, from no slide called positive to all of them.

    NaN where a class is not drawn.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # last slide of each tied group
    drawn = weights[:, order]
    curves = []
    for kind in (positive[order], ~positive[order]):
        found = np.pad((drawn * kind).cumsum(axis=1)[:, last], ((0, 0), (1, 0)))
        curves.append(np.divide(found, found[:, -1:], out=np.full_like(found, np.nan), where=found[:, -1:] > 0))
    return curves[0], curves[1]


def _weighted_mean(values: Values, weights: Weights) -> Values:
    return _ratio(weights @ values, weights.sum(axis=1))


def _mean_over_classes(predictions: Predictions, one: Callable[[NDArray[np.bool_], Values], Values]) -> Values:
    values = [
        one(predictions.y_true == index, predictions.probabilities[:, index]) for index in predictions.scored_classes
    ]
    return np.mean(values, axis=0)


def _ratio(numerator: Values, denominator: Values) -> Values:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def resampled_mean(groups: Sequence[Predictions | SurvivalPredictions], metric: str, draws: CaseDraws) -> Values:
    """(B,) mean of a metric over groups (folds, or folds of several runs) under shared draws of cases."""
    form: Callable[[Any, Weights], Values] = RESAMPLED_SURVIVAL.get(metric) or RESAMPLED[metric]
    values = np.array([form(group, draws.weights(group.case_id)) for group in groups])
    defined = np.isfinite(values)
    total = np.where(defined, values, 0).sum(axis=0)
    return _ratio(total, defined.sum(axis=0).astype(np.float64))


def percentile_interval(values: Values, level: float = 0.95) -> tuple[float, float] | None:
    """(low, high) percentiles; None when fewer than half of the resamples define the value."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
