"""DeLong intervals and tests of AUROCs, one or two correlated ones, by midranks; slides of a case count together.

The structural components of an AUROC say how much each slide moves it. Summed by case and averaged over folds, seeds
and classes they are what a case moves the reported number, and the variance is the sum of their squares.
With one slide a case, one part and two classes this is exactly DeLong's variance (and, for a difference, covariance).

Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; midranks: Sun and Xu, IEEE Signal Processing Letters 2014;
sums by case: Obuchowski, Biometrics 1997 (whose factor of the mixed term, I / (I - 1), is the geometric mean of the
positive and negative one here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from mhim.metrics import Predictions

Values = NDArray[np.float64]
NO_VARIANCE = 1e-14


@dataclass(frozen=True)
class Moved:
    """A value and what each case moves it by.

    Attributes:
        value: mean AUROC, or a difference of two.
        influence: (K,) share of each case in the deviation from the true value; the variance is the sum of squares.
    """

    value: float
    influence: Values

    @property
    def standard_error(self) -> float:
        """Square root of the variance."""
        return float(np.sqrt(np.square(self.influence).sum()))

    def __sub__(self, other: Moved) -> Moved:
        return Moved(self.value - other.value, self.influence - other.influence)


@dataclass(frozen=True)
class DeLong:
    """A value with its standard error, interval and two-sided p-value.

    Attributes:
        value: the AUROC, or the difference of two.
        standard_error: by DeLong's method.
        interval: 95 % (low, high): on the logit scale for an AUROC, so that it stays within 0 and 1; on the plain
            scale for a difference. None where the standard error is 0 (a perfect ranking).
        p_value: of "the AUROC is 0.5", or of "the difference is 0"; None where the standard error is 0.
    """

    value: float
    standard_error: float
    interval: tuple[float, float] | None
    p_value: float | None


def structural_components(positive: NDArray[np.bool_], score: Values) -> tuple[float, Values, Values]:
    """AUROC and the components of its slides, in O(M log M).

    Args:
        positive: (M,) at least one true and one false.
        score: (M,) the higher, the more positive; ties count half.

    Returns:
        AUROC; (m,) share of negatives that each positive beats; (n,) share of positives that beat each negative.
    """
    above, below = score[positive], score[~positive]
    together = rankdata(np.concatenate([above, below]))
    m, n = len(above), len(below)
    of_positives = (together[:m] - rankdata(above)) / n
    of_negatives = 1 - (together[m:] - rankdata(below)) / m
    return float(of_positives.mean()), of_positives, of_negatives


def moved_auroc(positive: NDArray[np.bool_], score: Values, owner: NDArray[np.int64], n_owners: int) -> Moved | None:
    """One AUROC and what each owner of slides moves it by; None with one class.

    A class that one owner alone holds gives no variance; its part counts as 0.
    """
    if positive.all() or not positive.any():
        return None
    area, of_positives, of_negatives = structural_components(positive, score)
    influence = np.zeros(n_owners)
    for kind, components in ((positive, of_positives), (~positive, of_negatives)):
        owners = len(np.unique(owner[kind]))
        factor = np.sqrt(owners / (owners - 1)) if owners > 1 else 0.0
        influence += factor * np.bincount(owner[kind], components - area, n_owners) / kind.sum()
    return Moved(area, influence)


def moved_mean(parts: Sequence[Predictions], cases: NDArray[np.str_]) -> Moved | None:
    """Mean AUROC over the parts that define it (folds, or folds of several runs), macro-averaged over classes.

    Args:
        parts: predictions, each ranked on its own scale.
        cases: (K,) sorted names of all cases.
    """
    found = [moved for part in parts if (moved := _macro(part, cases)) is not None]
    if not found:
        return None
    return Moved(float(np.mean([each.value for each in found])), np.mean([each.influence for each in found], axis=0))


def _macro(part: Predictions, cases: NDArray[np.str_]) -> Moved | None:
    owner = np.searchsorted(cases, part.case_id)
    found: list[Moved] = []
    for index in part.scored_classes:
        moved = moved_auroc(part.y_true == index, part.probabilities[:, index], owner, len(cases))
        if moved is None:
            return None
        found.append(moved)
    return Moved(float(np.mean([each.value for each in found])), np.mean([each.influence for each in found], axis=0))


def delong(parts: Sequence[Predictions], level: float = 0.95) -> DeLong | None:
    """Mean AUROC over parts with DeLong's interval; None where no part defines it."""
    moved = moved_mean(parts, _cases(parts))
    if moved is None:
        return None
    error, value = moved.standard_error, moved.value
    if error <= NO_VARIANCE or not 0 < value < 1:
        return DeLong(value, error, None, None)
    reach = float(norm.ppf((1 + level) / 2)) * error / (value * (1 - value))
    middle = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-(middle + side)))) for side in (-reach, reach))
    return DeLong(value, error, (low, high), _p_value((value - 0.5) / error))


def delong_difference(
    first: Sequence[Predictions], second: Sequence[Predictions], level: float = 0.95
) -> DeLong | None:
    """Mean AUROC of ``second`` minus that of ``first``, over the same slides; None where either is undefined.

    Equal rankings differ by 0 with p = 1.
    """
    cases = _cases([*first, *second])
    one, other = moved_mean(first, cases), moved_mean(second, cases)
    if one is None or other is None:
        return None
    moved = other - one
    error = moved.standard_error
    if error <= NO_VARIANCE:
        return DeLong(moved.value, error, None, 1.0 if abs(moved.value) <= NO_VARIANCE else None)
    reach = float(norm.ppf((1 + level) / 2)) * error
    return DeLong(moved.value, error, (moved.value - reach, moved.value + reach), _p_value(moved.value / error))


def _cases(parts: Sequence[Predictions]) -> NDArray[np.str_]:
    return np.unique(np.concatenate([part.case_id for part in parts]))


def _p_value(z: float) -> float:
    return float(2 * norm.sf(abs(z)))
