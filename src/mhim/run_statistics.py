"""What stands in ``metrics.json`` beside the headline: further metrics, DeLong, calibration, operating points, sets.

Everything is per fold and then averaged: a fold's validation slides choose its temperature, thresholds and set bounds,
its test slides are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mhim.calibration import OperatingRule, at_temperature, fit_temperature, rates
from mhim.conformal import Conformal, report_sets
from mhim.delong import DeLong, delong
from mhim.metrics import FURTHER_METRICS, Predictions, brier, ece, log_loss
from mhim.resampling import CaseDraws, percentile_interval, resampled_mean

MISS_RATE = 0.1
RULES = (OperatingRule("youden"), OperatingRule("sensitivity", 0.95), OperatingRule("specificity", 0.95))
DIGITS = 6


def further_statistics(
    tested: Sequence[Predictions], validated: Sequence[Predictions] | None, draws: CaseDraws
) -> dict[str, Any]:
    """All of it, as plain values rounded to 6 digits; None where undefined.

    Args:
        tested: test predictions, one entry a fold.
        validated: validation predictions of the same folds; None where the test part validated, which leaves nothing
            that may choose a temperature, a threshold or a set.
        draws: cases of all folds.
    """
    found: dict[str, Any] = {
        "metrics": {name: _metric(tested, name, draws) for name in FURTHER_METRICS},
        "ece_bins": "10 of equal width; ece_equal_mass: 10 of equal mass",
        "ece_equal_mass": _mean([ece(fold, equal_mass=True) for fold in tested]),
        "delong": delong_json(delong(tested)),
    }
    if validated is None:
        return found
    pairs = list(zip(validated, tested, strict=True))
    found["temperature"] = _temperature(pairs)
    found["conformal"] = _conformal(pairs)
    if tested[0].n_classes == 2:
        found["operating_points"] = {rule.name: _operating(pairs, rule) for rule in RULES}
    return found


def delong_json(found: DeLong | None) -> dict[str, float | None] | None:
    """A DeLong result as plain values."""
    if found is None:
        return None
    low, high = found.interval or (None, None)
    numbers = {
        "value": found.value,
        "standard_error": found.standard_error,
        "low": low,
        "high": high,
        "p": found.p_value,
    }
    return {name: _rounded(value) for name, value in numbers.items()}


def _metric(folds: Sequence[Predictions], name: str, draws: CaseDraws) -> dict[str, Any]:
    values = [FURTHER_METRICS[name](fold) for fold in folds]
    known = [value for value in values if value is not None]
    low, high = percentile_interval(resampled_mean(folds, name, draws)) or (None, None)
    return {
        "fold_mean": _mean(values),
        "low": _rounded(low),
        "high": _rounded(high),
        "std": _rounded(float(np.std(known))) if known else None,
        "folds": [_rounded(value) for value in values],
    }


def _temperature(pairs: Sequence[tuple[Predictions, Predictions]]) -> dict[str, Any]:
    """Errors of calibration on the test slides before and after the temperature that validation chose."""
    chosen = [fit_temperature(val) for val, _ in pairs]
    scaled = [test if t is None else at_temperature(test, t) for t, (_, test) in zip(chosen, pairs, strict=True)]
    said: dict[str, Any] = {"chosen_by": "validation log loss", "folds": [_rounded(value) for value in chosen]}
    for name, metric in {"log_loss": log_loss, "brier": brier, "ece": ece}.items():
        said[name] = {"before": _mean([metric(test) for _, test in pairs]), "after": _mean([metric(s) for s in scaled])}
    return said


def _conformal(pairs: Sequence[tuple[Predictions, Predictions]]) -> dict[str, Any]:
    reports = [report_sets(test, Conformal.fit(val, MISS_RATE).sets(test)) for val, test in pairs]
    names = ("covered", "mean_size", "decided", "accuracy_decided")
    return {"promised": 1 - MISS_RATE, "chosen_by": "validation"} | {
        name: _mean([getattr(report, name) for report in reports]) for name in names
    }


def _operating(pairs: Sequence[tuple[Predictions, Predictions]], rule: OperatingRule) -> dict[str, Any]:
    cuts = [rule.threshold(val) for val, _ in pairs]
    found = [
        asdict(rates(test.y_true, test.probabilities[:, 1] >= cut)) for cut, (_, test) in zip(cuts, pairs, strict=True)
    ]
    return {"thresholds": [_rounded(cut) for cut in cuts]} | {
        name: _mean([each[name] for each in found]) for name in ("sensitivity", "specificity", "ppv", "npv")
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(float(np.mean(known))) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
