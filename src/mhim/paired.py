"""Two configurations compared on the same parts: paired intervals, tests, and Holm's correction for many of them.

Two questions, two kinds of variance, both reported and each labelled:

* *On other patients?* Cases are what varies; the trained models are given. Case bootstrap and DeLong.
* *With other training sets?* Folds and seeds are what varies. The training sets of a cross-validation overlap, so the
  plain t-test is far too sure; the corrected resampled t-test adds the share of overlap to the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from mhim.delong import DeLong, delong_difference
from mhim.errors import CohortError
from mhim.metrics import ALL_METRICS, Predictions
from mhim.resampling import CaseDraws, percentile_interval, resampled_mean
from mhim.survival import SURVIVAL_METRICS, SurvivalPredictions


@dataclass(frozen=True)
class CorrectedT:
    """Corrected resampled t-test over folds and seeds.

    Attributes:
        t, degrees: the statistic and its degrees of freedom, J - 1 for J differences.
        interval: 95 % (low, high) of the mean difference.
        p_value: two-sided.
    """

    t: float
    degrees: int
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class PairedComparison:
    """``second`` minus ``first`` in one metric, over the same parts.

    Attributes:
        metric: its name.
        difference: mean over the parts that define both; None where none does.
        per_part: the differences, None where undefined; parts in the order given (fold by fold, seed by seed).
        std: standard deviation (population) of the defined differences; None for fewer than two.
        bootstrap: 95 % percentile interval over cases, paired draws.
        bootstrap_p: two-sided, 2 min(share <= 0, share >= 0), never below 2 / (B + 1); ties of 0 give 1.
        delong: DeLong's difference, for AUROC only.
        corrected_t: over parts; None for fewer than two defined parts or differences without any spread.
        holm_p, bootstrap_holm_p, delong_holm_p: the p-value of each test after Holm's correction over the same test
            of the other comparisons; filled by :func:`correct_for_many`.
    """

    metric: str
    difference: float | None
    per_part: tuple[float | None, ...]
    std: float | None
    bootstrap: tuple[float, float] | None
    bootstrap_p: float | None
    delong: DeLong | None
    corrected_t: CorrectedT | None
    holm_p: float | None = None
    bootstrap_holm_p: float | None = None
    delong_holm_p: float | None = None

    @property
    def p_value(self) -> float | None:
        """That of the corrected t-test over folds and seeds; None where undefined."""
        return None if self.corrected_t is None else self.corrected_t.p_value


def compare_paired(
    first: Sequence[Predictions] | Sequence[SurvivalPredictions],
    second: Sequence[Predictions] | Sequence[SurvivalPredictions],
    draws: CaseDraws,
    test_over_train: float,
    metric: str = "auroc",
) -> PairedComparison:
    """``second`` against ``first``, part by part (fold k of seed s against fold k of seed s).

    Args:
        first: test predictions of the configuration compared with.
        second: test predictions; parts that stand at the same place hold the same slides in the same order.
        draws: cases of all parts, drawn once for all comparisons of a table.
        test_over_train: test cases a training case, 1 / (K - 1) for K folds without a validation part.
        metric: name in ``mhim.metrics.ALL_METRICS``, or "c_index" for survival.

    Raises:
        CohortError: the parts do not hold the same slides.
    """
    _require_pairs(first, second)
    score = _score(metric)
    pairs = [(score(one), score(other)) for one, other in zip(first, second, strict=True)]
    per_part = tuple(None if a is None or b is None else b - a for a, b in pairs)
    defined = np.array([each for each in per_part if each is not None])
    resampled = resampled_mean(second, metric, draws) - resampled_mean(first, metric, draws)
    return PairedComparison(
        metric=metric,
        difference=float(defined.mean()) if len(defined) else None,
        per_part=per_part,
        std=float(defined.std()) if len(defined) > 1 else None,
        bootstrap=percentile_interval(resampled),
        bootstrap_p=bootstrap_p_value(resampled),
        delong=delong_difference(*cast("Any", (first, second))) if metric == "auroc" else None,
        corrected_t=corrected_resampled_t(defined, test_over_train),
    )


def corrected_resampled_t(
    differences: NDArray[np.float64], test_over_train: float, level: float = 0.95
) -> CorrectedT | None:
    """t-test of J differences from overlapping training sets: variance (1 / J + n_test / n_train) s^2.

    With ``test_over_train`` 0 it is the plain paired t-test. None for fewer than two differences, or when they are
    equal to each other and not 0 (no spread to judge by); all 0 give p = 1.

    Source: Nadeau and Bengio, Machine Learning 2003, section 3; for repeated k-fold cross-validation Bouckaert and
    Frank, PAKDD 2004.
    """
    count = len(differences)
    if count < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread <= 1e-15:
        return CorrectedT(0.0, count - 1, (0.0, 0.0), 1.0) if abs(mean) <= 1e-15 else None
    error = float(np.sqrt(1 / count + test_over_train)) * spread
    reach = float(student_t.ppf((1 + level) / 2, count - 1)) * error
    p_value = float(2 * student_t.sf(abs(mean / error), count - 1))
    return CorrectedT(mean / error, count - 1, (mean - reach, mean + reach), p_value)


def bootstrap_p_value(resampled: NDArray[np.float64]) -> float | None:
    """Two-sided p-value of "no difference" from resampled differences; None when fewer than half are defined."""
    defined = resampled[np.isfinite(resampled)]
    if 2 * len(defined) < len(resampled) or not len(defined):
        return None
    least = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (least + 1) / (len(defined) + 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's step-down correction, in the order given; None stays and is not counted.

    The chance of any false finding among all of them is at most the level they are compared with, whatever their
    dependence. Source: Holm, Scandinavian Journal of Statistics 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[index] = highest
    return corrected


def correct_for_many(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The comparisons of one table with the corrected p-values filled; each test is a family of its own."""
    by_test = (
        holm([each.p_value for each in comparisons]),
        holm([each.bootstrap_p for each in comparisons]),
        holm([None if each.delong is None else each.delong.p_value for each in comparisons]),
    )
    return [
        replace(each, holm_p=training, bootstrap_holm_p=cases, delong_holm_p=delong)
        for each, training, cases, delong in zip(comparisons, *by_test, strict=True)
    ]


def _score(metric: str) -> Callable[[Any], float | None]:
    return SURVIVAL_METRICS.get(metric) or ALL_METRICS[metric]


def _require_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second):
        raise CohortError(
            f"{len(second)} parts cannot be paired with {len(first)}; compare runs with equal folds and seeds"
        )
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        if not all(map(np.array_equal, _truth(one), _truth(other))):
            raise CohortError(f"part {index} holds other slides or labels in the second run; compare runs of one split")


def _truth(part: Predictions | SurvivalPredictions) -> tuple[NDArray[Any], ...]:
    """What two runs of one part share: cases with their labels, or with their times and events."""
    if isinstance(part, Predictions):
        return part.case_id, part.y_true
    return part.case_id, part.times, part.events
