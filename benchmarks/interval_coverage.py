"""How often 95 % intervals of an AUROC, and of a difference of two, hold the true value, by number of cases.

Simulated cohorts: one to three slides a case, a label a case, scores normal, half of their variance the case's own
(so that slides of a case resemble each other); two readings share three quarters of the variance of each slide.

    python benchmarks/interval_coverage.py --rounds 2000
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from scipy.stats import norm

from mhim.delong import delong, delong_difference
from mhim.metrics import Predictions
from mhim.resampling import CaseDraws, percentile_interval, resampled_mean

COLUMNS = ("bootstrap", "DeLong", "DeLong, slides as cases", "bootstrap, difference", "DeLong, difference")


def cohort(names: np.ndarray, gap: float, rng: np.random.Generator) -> tuple[Predictions, Predictions]:
    """Two readings of one simulated cohort, each of AUROC Phi(gap / sqrt 2)."""
    owner = np.repeat(np.arange(len(names)), rng.integers(1, 4, len(names)))
    label = owner % 2
    shared = np.sqrt(0.5) * rng.normal(size=len(names))[owner] + np.sqrt(0.25) * rng.normal(size=len(owner))
    readings = []
    for _ in range(2):
        score = norm.cdf(gap * label + shared + np.sqrt(0.25) * rng.normal(size=len(owner)))
        readings.append(
            Predictions(names[owner], label, (score >= 0.5).astype(np.int64), np.stack([1 - score, score], axis=1))
        )
    return readings[0], readings[1]


def covered(cases: int, gap: float, rounds: int, resamples: int) -> Counter[str]:
    """How many of the rounds' intervals hold the true value, by column."""
    rng, names = np.random.default_rng(cases), np.array([f"c{index:04d}" for index in range(cases)])
    draws, truth = CaseDraws.draw(list(names), resamples, 1), float(norm.cdf(gap / np.sqrt(2)))
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        one, other = cohort(names, gap, rng)
        apart = Predictions(np.arange(len(one)).astype(str), one.y_true, one.y_pred, one.probabilities)
        first, second = (resampled_mean([part], "auroc", draws) for part in (one, other))
        exact, loose, difference = delong([one]), delong([apart]), delong_difference([one], [other])
        intervals = (
            (percentile_interval(first), truth),
            (exact and exact.interval, truth),
            (loose and loose.interval, truth),
            (percentile_interval(second - first), 0.0),
            (difference and difference.interval, 0.0),
        )
        for name, (interval, value) in zip(COLUMNS, intervals, strict=True):
            counts[name] += interval is not None and interval[0] <= value <= interval[1]
    return counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=500)
    options = parser.parse_args()
    print("| AUROC | cases | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|", flush=True)
    for gap in (1.0, 1.5, 2.2):
        for cases in (20, 40, 80, 120, 200):
            counts = covered(cases, gap, options.rounds, options.resamples)
            shares = " | ".join(f"{counts[name] / options.rounds:.1%}" for name in COLUMNS)
            print(f"| {norm.cdf(gap / np.sqrt(2)):.2f} | {cases} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
