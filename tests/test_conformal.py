"""Conformal sets keep their promise in simulation; abstention is counted right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from mhim.conformal import Conformal, report_sets, risk_coverage
from mhim.errors import ConfigError
from mhim.metrics import Predictions


def drawn(seed: int, count: int, classes: int = 3, rare: float | None = None) -> Predictions:
    """Scores that know something, on classes of which the last one may be rare."""
    rng = np.random.default_rng(seed)
    share = np.full(classes, 1 / classes) if rare is None else np.array([1 - rare, rare])
    y_true = rng.choice(len(share), count, p=share)
    p = softmax(rng.normal(size=(count, len(share))) + 1.5 * np.eye(len(share))[y_true], axis=1)
    return Predictions(np.arange(count).astype(str), y_true, p.argmax(axis=1), p)


@pytest.mark.parametrize("miss_rate", [0.05, 0.2])
def test_sets_hold_the_true_class_as_often_as_promised(miss_rate: float) -> None:
    """Mean coverage over 300 calibrations with 60 slides each lies in [1 - alpha, 1 - alpha + 1 / 61]."""
    covered = []
    for seed in range(300):
        both = drawn(seed, 120)
        val, test = (
            Predictions(both.case_id[part], both.y_true[part], both.y_pred[part], both.probabilities[part])
            for part in (slice(0, 60), slice(60, 120))
        )
        covered.append(report_sets(test, Conformal.fit(val, miss_rate).sets(test)).covered)
    assert 1 - miss_rate - 0.01 <= np.mean(covered) <= 1 - miss_rate + 1 / 61 + 0.01


def test_by_class_the_promise_holds_for_a_rare_class_too() -> None:
    val, test = drawn(0, 4000, rare=0.05), drawn(1, 8000, rare=0.05)
    plain = report_sets(test, Conformal.fit(val, 0.1).sets(test))
    each = report_sets(test, Conformal.fit(val, 0.1, by_class=True).sets(test))
    assert each.covered_by_class == pytest.approx((0.9, 0.9), abs=0.05)
    assert each.covered == pytest.approx(0.9, abs=0.02)
    assert plain.covered == pytest.approx(0.9, abs=0.02)


def test_the_bound_by_hand() -> None:
    """Four slides, alpha 0.4: the ceil(5 x 0.6) = third smallest 1 - p, which is p = 0.6."""
    p = np.array([0.9, 0.8, 0.6, 0.3])
    val = Predictions(np.arange(4).astype(str), np.ones(4, int), np.ones(4, int), np.stack([1 - p, p], axis=1))
    assert Conformal.fit(val, 0.4).least.tolist() == [0.6, 0.6]


def test_too_few_slides_promise_nothing_and_admit_every_class() -> None:
    val = drawn(0, 8)
    assert Conformal.fit(val, 0.1).least.tolist() == [0.0] * 3
    assert Conformal.fit(val, 0.1).sets(val).all()
    assert Conformal.fit(val, 0.2).least[0] > 0


def test_a_rate_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="miss rate 1.0 is not between 0 and 1"):
        Conformal.fit(drawn(0, 8), 1.0)


def test_abstention_by_hand() -> None:
    """Sets {0}, {1}, {0, 1}, {}: two decided, one of them right."""
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])
    given = Predictions(np.arange(4).astype(str), np.array([0, 0, 1, 1]), p.argmax(axis=1), p)
    sets = np.array([[True, False], [False, True], [True, True], [False, False]])
    found = report_sets(given, sets)
    assert (found.covered, found.mean_size, found.decided, found.accuracy_decided) == (0.5, 1.0, 0.5, 0.5)
    assert found.covered_by_class == (0.5, 0.5)
    assert report_sets(given, np.ones((4, 2), bool)).accuracy_decided is None


def test_leaving_out_the_least_sure_by_hand() -> None:
    p = np.array([0.9, 0.6, 0.8, 0.45])
    given = Predictions(np.arange(4).astype(str), np.array([1, 0, 1, 0]), (p > 0.5) * 1, np.stack([1 - p, p], axis=1))
    share, risk = risk_coverage(given)
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
