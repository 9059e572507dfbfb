"""Do probabilities mean what they say, and what follows for decisions: temperature, reliability, operating points.

Everything that is *chosen* here (a temperature, a threshold) is chosen on validation slides and applied to others;
no function takes both. Everything that is *described* (a reliability table, a decision curve) takes the slides that
it describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import roc_curve

from mhim.errors import ConfigError
from mhim.metrics import (
    ECE_BINS,
    SMALLEST_PROBABILITY,
    Predictions,
    equal_mass_bins,
    equal_width_bins,
    said_and_happened,
    youden_threshold,
)

Values = NDArray[np.float64]
TEMPERATURES = (0.05, 20.0)
"""Range that a temperature is searched in."""


def fit_temperature(validation: Predictions) -> float | None:
    """Temperature that gives the validation slides the least log loss; None where nothing bounds it.

    That is with one class only, and with slides so well separated that ever surer probabilities lose ever less: a few
    validation slides that are all right do not say how sure to be.

    Source: Guo et al., ICML 2017, section 4.2. Probabilities stand for logits (softmax forgets a shared shift only).
    """
    if len(np.unique(validation.y_true)) < 2:
        return None
    logits = _logits(validation)
    rows = np.arange(len(validation))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, validation.y_true].mean())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return None if found.x - low < 1e-3 else float(np.exp(found.x))


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same slides with softmax(log p / T); classes called stay as they are.

    T > 1 makes sure probabilities less sure. Order within a class, and so AUROC for two classes, does not change.
    """
    return replace(predictions, probabilities=softmax(_logits(predictions) / temperature, axis=1))


def _logits(predictions: Predictions) -> Values:
    return np.log(np.clip(predictions.probabilities, SMALLEST_PROBABILITY, 1.0))


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram as numbers; only bins that hold slides.

    Attributes:
        count: (K,) int64 slides in the bin.
        said: (K,) mean promised probability.
        happened: (K,) share that came true.
        low: (K,) lower end of Wilson's 95 % interval of ``happened``; slides count as independent.
        high: (K,) its upper end.
    """

    count: NDArray[np.int64]
    said: Values
    happened: Values
    low: Values
    high: Values


def reliability(predictions: Predictions, bins: int = ECE_BINS, equal_mass: bool = False) -> Reliability:
    """Promised against observed shares, by bins of equal width or equal mass; see ``metrics.said_and_happened``."""
    said, happened = said_and_happened(predictions)
    place = (equal_mass_bins if equal_mass else equal_width_bins)(said, bins)
    count = np.bincount(place, minlength=bins)
    full = count > 0
    mean = np.bincount(place, said, bins)[full] / count[full]
    share = np.bincount(place, happened, bins)[full] / count[full]
    low, high = wilson(share * count[full], count[full])
    return Reliability(count[full], mean, share, low, high)


def wilson(successes: Values, trials: NDArray[np.int64], level: float = 0.95) -> tuple[Values, Values]:
    """Wilson's interval (low, high) of shares; (0, 1) without trials. Source: Wilson, JASA 1927."""
    z = float(norm.ppf((1 + level) / 2))
    n = np.maximum(trials, 1)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    none = trials == 0
    return np.where(none, 0.0, np.clip(middle - reach, 0, 1)), np.where(none, 1.0, np.clip(middle + reach, 0, 1))


@dataclass(frozen=True)
class OperatingRule:
    """How a threshold on the positive class is chosen on validation slides.

    Attributes:
        kind: ``youden`` (most sensitivity + specificity), ``sensitivity`` or ``specificity`` (at least the target).
        target: the rate to reach, in (0, 1]; not read by ``youden``.
    """

    kind: Literal["youden", "sensitivity", "specificity"] = "youden"
    target: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ConfigError(f"operating point: target {self.target} is not in (0, 1]")

    @property
    def name(self) -> str:
        """``youden``, ``sensitivity>=0.95``."""
        return self.kind if self.kind == "youden" else f"{self.kind}>={self.target:g}"

    def threshold(self, validation: Predictions) -> float:
        """Threshold on the probability of class 1 (positive at p >= threshold), from validation slides alone.

        Of all thresholds that reach the target, the one with the best other rate; in the middle of its gap between
        scores. 0.5 with one class only.

        Raises:
            ConfigError: more than two classes.
        """
        if validation.n_classes != 2:
            raise ConfigError(f"operating point: {validation.n_classes} classes have no single threshold")
        y_true, score = validation.y_true, validation.probabilities[:, 1]
        if self.kind == "youden":
            return youden_threshold(y_true, score)
        if len(np.unique(y_true)) < 2:
            return 0.5
        fpr, tpr, thresholds = roc_curve(y_true, score, drop_intermediate=False)
        if self.kind == "sensitivity":
            chosen = int(np.argmax(tpr >= self.target - 1e-12))  # the highest threshold that reaches it
        else:
            chosen = int(np.flatnonzero(fpr <= 1 - self.target + 1e-12)[-1])  # the lowest one
        return _middle_of_gap(float(thresholds[chosen]), score)


def _middle_of_gap(threshold: float, score: Values) -> float:
    """Halfway to the next lower score; above all scores where nothing is called positive."""
    if np.isinf(threshold):
        return max(1.0, float(np.nextafter(score.max(), 2.0)))
    below = score[score < threshold]
    middle = (threshold + float(below.max())) / 2 if len(below) else threshold
    return middle if not len(below) or middle > below.max() else threshold


@dataclass(frozen=True)
class Rates:
    """What a decision does on the slides scored; a rate is None where nothing defines it."""

    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None


def rates(y_true: NDArray[np.int64], called: NDArray[np.bool_]) -> Rates:
    """Sensitivity, specificity and predictive values of positive calls, two classes."""
    positive = y_true == 1

    def share(of: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
        return float((of & among).sum() / among.sum()) if among.any() else None

    return Rates(share(called, positive), share(~called, ~positive), share(positive, called), share(~positive, ~called))


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold probability.

    Attributes:
        threshold: (T,) probability from which one would act.
        model: (T,) net benefit of acting by the model.
        everyone: (T,) of acting on everyone. Acting on nobody has 0.
    """

    threshold: Values
    model: Values
    everyone: Values


def decision_curve(predictions: Predictions, thresholds: Sequence[float] | None = None) -> DecisionCurve:
    """Net benefit: true positives a slide minus false positives a slide times p / (1 - p), two classes.

    It speaks of probabilities, so they should be calibrated. Source: Vickers and Elkin, Medical Decision Making 2006.

    Args:
        predictions: the slides described.
        thresholds: threshold probabilities in (0, 1); by default 0.01 to 0.99.

    Raises:
        ConfigError: more than two classes, or a threshold outside (0, 1).
    """
    if predictions.n_classes != 2:
        raise ConfigError(f"decision curve: takes two classes, not {predictions.n_classes}; ask one against the rest")
    at = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if ((at <= 0) | (at >= 1)).any():
        raise ConfigError("decision curve: threshold probabilities lie between 0 and 1")
    odds = at / (1 - at)
    positive, score = predictions.y_true == 1, predictions.probabilities[:, 1]
    called = score[None, :] >= at[:, None]
    hits, alarms = (called & positive).mean(axis=1), (called & ~positive).mean(axis=1)
    share = positive.mean()
    return DecisionCurve(at, hits - alarms * odds, share - (1 - share) * odds)
