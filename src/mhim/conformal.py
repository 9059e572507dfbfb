"""Prediction sets that hold the true class as often as they promise, and models that may say "I do not know".

Split conformal prediction: the validation slides say how improbable a true class can look. The promise holds on average
over draws of validation and test slides that are exchangeable. Two limits: validation slides also chose the epoch,
which makes them slightly too easy; and several slides of one case are not exchangeable with those of other cases, so
sets are best read where a case has one slide.

Source: Papadopoulos et al., ECML 2002; Sadinle, Lei and Wasserman, JASA 2019 (least ambiguous sets, here "LAC").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mhim.errors import ConfigError
from mhim.metrics import Predictions

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Conformal:
    """Thresholds of a conformal predictor, one a class (all equal unless it was fitted class by class).

    Attributes:
        miss_rate: promised share of sets that miss the true class, alpha.
        least: (C,) probability from which a class belongs to the set; 0 admits it always.
    """

    miss_rate: float
    least: Values

    @classmethod
    def fit(cls, validation: Predictions, miss_rate: float = 0.1, by_class: bool = False) -> Conformal:
        """Fit on validation slides.

        Of n slides the ceil((n + 1)(1 - alpha))-th smallest score 1 - p(true class) bounds the set; with fewer
        than 1 / alpha - 1 slides no bound can promise that much, and every class is admitted.

        Args:
            validation: slides that training did not see; never test slides.
            miss_rate: in (0, 1).
            by_class: keep the promise within each class (Mondrian), which rare classes need; wider sets.

        Raises:
            ConfigError: a rate outside (0, 1).
        """
        if not 0 < miss_rate < 1:
            raise ConfigError(f"conformal: miss rate {miss_rate} is not between 0 and 1")
        own = validation.probabilities[np.arange(len(validation)), validation.y_true]
        if not by_class:
            return cls(miss_rate, np.full(validation.n_classes, _least(own, miss_rate)))
        each = [_least(own[validation.y_true == index], miss_rate) for index in range(validation.n_classes)]
        return cls(miss_rate, np.array(each))

    def sets(self, predictions: Predictions) -> NDArray[np.bool_]:
        """(M, C) which classes each slide's set holds; a set can be empty."""
        return predictions.probabilities >= self.least


def _least(own: Values, miss_rate: float) -> float:
    """Smallest probability of the true class that still belongs."""
    rank = math.ceil((len(own) + 1) * (1 - miss_rate) - 1e-9)
    return 0.0 if rank > len(own) else float(np.sort(own)[::-1][rank - 1])


@dataclass(frozen=True)
class SetReport:
    """How prediction sets did on the slides scored.

    Attributes:
        covered: share of sets that hold the true class; promised 1 - alpha.
        covered_by_class: share within each true class, None for an absent one.
        mean_size: classes a set.
        decided: share of slides whose set is a single class; on all others the model abstains.
        accuracy_decided: share of right ones among the decided, None where none is decided.
    """

    covered: float
    covered_by_class: tuple[float | None, ...]
    mean_size: float
    decided: float
    accuracy_decided: float | None


def report_sets(predictions: Predictions, sets: NDArray[np.bool_]) -> SetReport:
    """Coverage, size and abstention.

    Args:
        predictions: M slides, at least one.
        sets: (M, C) as :meth:`Conformal.sets` gives them.
    """
    holds = sets[np.arange(len(predictions)), predictions.y_true]
    alone = sets.sum(axis=1) == 1
    classes = [predictions.y_true == index for index in range(predictions.n_classes)]
    return SetReport(
        covered=float(holds.mean()),
        covered_by_class=tuple(float(holds[members].mean()) if members.any() else None for members in classes),
        mean_size=float(sets.sum(axis=1).mean()),
        decided=float(alone.mean()),
        accuracy_decided=float(holds[alone].mean()) if alone.any() else None,
    )


def risk_coverage(predictions: Predictions) -> tuple[Values, Values]:
    """(share decided, error among them) when the least sure slides are left out one after the other.

    Sure is a high probability of the most probable class, which is also what is called. Source: Geifman and El-Yaniv,
    NeurIPS 2017.

    Returns:
        (M,) shares from 1 / M to 1, and (M,) error rates.
    """
    count = np.arange(1, len(predictions) + 1)
    order = np.argsort(-predictions.probabilities.max(axis=1), kind="stable")
    wrong = predictions.probabilities.argmax(axis=1) != predictions.y_true
    return count / max(len(predictions), 1), wrong[order].cumsum() / count
