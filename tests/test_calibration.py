"""Calibration: temperatures recovered, reliability and net benefit by hand, operating points from validation alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from mhim.calibration import (
    TEMPERATURES,
    OperatingRule,
    Rates,
    at_temperature,
    decision_curve,
    fit_temperature,
    rates,
    reliability,
    wilson,
)
from mhim.errors import ConfigError
from mhim.metrics import Predictions, auroc, brier, ece, log_loss, said_and_happened

LAW = settings(deadline=None, max_examples=60)


def predictions(probabilities: np.ndarray, y_true: np.ndarray) -> Predictions:
    cases = np.array([f"c{i}" for i in range(len(y_true))], dtype=np.str_)
    return Predictions(cases, y_true.astype(np.int64), probabilities.argmax(axis=1), probabilities)


def binary(y_true: list[int], score: list[float]) -> Predictions:
    p = np.array(score, dtype=np.float64)
    return predictions(np.stack([1 - p, p], axis=1), np.array(y_true))


def overconfident(temperature: float, classes: int, count: int = 40_000) -> Predictions:
    """Outcomes drawn from softmax(logits), promised with logits times a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, classes)) * 1.5
    true = softmax(logits, axis=1)
    y_true = (rng.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return predictions(softmax(logits * temperature, axis=1), y_true)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_miscalibrated_model_is_found(classes: int, temperature: float) -> None:
    given_ = overconfident(temperature, classes)
    found = fit_temperature(given_)
    assert found == pytest.approx(temperature, rel=0.04)
    assert found is not None
    cooled = at_temperature(given_, found)
    assert (ece(cooled) or 0) < 0.01
    assert (log_loss(cooled) or 0) <= (log_loss(given_) or 0)
    if temperature != 1.0:
        assert (ece(cooled) or 0) < (ece(given_) or 0)
        assert (brier(cooled) or 0) < (brier(given_) or 0)


@LAW
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=20), st.floats(0.1, 10))
def test_no_other_temperature_has_less_loss_and_ranks_stay(rows: list[tuple[int, float]], other: float) -> None:
    given_ = binary([label for label, _ in rows], [score for _, score in rows])
    found = fit_temperature(given_)
    if found is None:
        surest = at_temperature(given_, TEMPERATURES[0])
        assert len({label for label, _ in rows}) == 1 or (log_loss(surest) or 0) <= (log_loss(given_) or 0) + 1e-9
        return
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
    best = log_loss(at_temperature(given_, found))
    assert best is not None
    assert best <= (log_loss(at_temperature(given_, other)) or 0) + 1e-4


def test_a_temperature_changes_no_rank() -> None:
    rng = np.random.default_rng(0)
    given_ = binary((np.arange(50) % 2).tolist(), rng.random(50).tolist())
    for temperature in (0.2, 5.0):
        scaled = at_temperature(given_, temperature)
        assert auroc(scaled) == auroc(given_)
        np.testing.assert_array_equal(scaled.y_pred, given_.y_pred)
        np.testing.assert_allclose(scaled.probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(at_temperature(given_, 1.0).probabilities, given_.probabilities)


def test_what_bounds_no_temperature_fits_none() -> None:
    assert fit_temperature(binary([1, 1], [0.2, 0.9])) is None
    assert fit_temperature(binary([0, 0, 1, 1], [0.2, 0.3, 0.7, 0.8])) is None


@pytest.mark.parametrize(("equal_mass", "strategy"), [(False, "uniform"), (True, "quantile")])
def test_reliability_is_scikit_learns(equal_mass: bool, strategy: str) -> None:
    rng = np.random.default_rng(0)
    given_ = binary(rng.integers(0, 2, 200).tolist(), rng.random(200).tolist())
    happened, said = calibration_curve(given_.y_true, given_.probabilities[:, 1], n_bins=10, strategy=strategy)  # pyright: ignore
    found = reliability(given_, 10, equal_mass)
    if equal_mass:  # scikit-learn cuts at interpolated quantiles; the same slides up to one a bin
        np.testing.assert_allclose(found.said, said, atol=0.02)
        assert found.count.tolist() == [20] * 10
    else:
        np.testing.assert_allclose(found.said, said)
        np.testing.assert_allclose(found.happened, happened)
    assert found.count.sum() == 200


def test_the_error_of_calibration_is_the_gap_of_the_diagram() -> None:
    given_ = overconfident(2.0, 3, 500)
    for equal_mass in (False, True):
        found = reliability(given_, 10, equal_mass)
        gap = (found.count * np.abs(found.said - found.happened)).sum() / found.count.sum()
        assert ece(given_, 10, equal_mass) == pytest.approx(gap)
    said, happened = said_and_happened(given_)
    assert np.average(found.said, weights=found.count) == pytest.approx(said.mean())
    assert np.average(found.happened, weights=found.count) == pytest.approx(happened.mean())


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 7), (10, 10)])
def test_wilsons_interval_is_scipys(successes: int, trials: int) -> None:
    low, high = wilson(np.array([float(successes)]), np.array([trials]))
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_without_trials_anything_is_possible() -> None:
    low, high = wilson(np.array([0.0]), np.array([0]))
    assert (low[0], high[0]) == (0.0, 1.0)


FOUR = binary([0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.5, 0.7, 0.4, 0.6, 0.8, 0.9])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (OperatingRule("sensitivity", 1.0), 0.3),  # just below 0.4
        (OperatingRule("sensitivity", 0.75), 0.55),
        (OperatingRule("sensitivity", 0.5), 0.75),
        (OperatingRule("specificity", 1.0), 0.75),
        (OperatingRule("specificity", 0.75), 0.55),
        (OperatingRule("specificity", 0.5), 0.3),
        (OperatingRule("youden"), 0.75),
    ],
)
def test_operating_points_by_hand(rule: OperatingRule, expected: float) -> None:
    assert rule.threshold(FOUR) == pytest.approx(expected)


@LAW
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=20).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    ),
    st.sampled_from([0.5, 0.9, 0.95, 1.0]),
)
def test_operating_points_keep_their_promise_on_validation_with_the_best_other_rate(
    rows: list[tuple[int, float]], target: float
) -> None:
    given_ = binary([label for label, _ in rows], [score for _, score in rows])
    score = given_.probabilities[:, 1]
    for kind, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")):
        found = rates(given_.y_true, score >= OperatingRule(kind, target).threshold(given_))  # pyright: ignore
        assert getattr(found, kind) >= target - 1e-9
        candidates = [rates(given_.y_true, score >= cut) for cut in (*score, 2.0)]
        best = max(getattr(each, other) for each in candidates if getattr(each, kind) >= target - 1e-9)
        assert getattr(found, other) == pytest.approx(best)


def test_operating_points_are_for_two_classes() -> None:
    with pytest.raises(ConfigError, match="3 classes have no single threshold"):
        OperatingRule().threshold(overconfident(1.0, 3, 20))
    with pytest.raises(ConfigError, match="target 1.5 is not in"):
        OperatingRule("sensitivity", 1.5)
    assert OperatingRule("sensitivity", 0.9).name == "sensitivity>=0.9"


def test_rates_by_hand() -> None:
    found = rates(np.array([1, 1, 1, 0, 0]), np.array([True, True, False, True, False]))
    assert found == Rates(pytest.approx(2 / 3), 0.5, pytest.approx(2 / 3), 0.5)  # pyright: ignore
    assert rates(np.array([1]), np.array([False])) == Rates(0.0, None, None, 0.0)


def test_net_benefit_by_hand() -> None:
    """At 0.5 one false positive costs as much as a true one brings; at 0.2 a quarter."""
    curve = decision_curve(FOUR, [0.2, 0.5])
    assert curve.model == pytest.approx([(4 - 3 * 0.25) / 8, (3 - 2) / 8])
    assert curve.everyone == pytest.approx([0.5 - 0.5 * 0.25, 0.0])


def test_a_perfect_model_has_the_benefit_of_all_positives() -> None:
    curve = decision_curve(binary([0, 0, 0, 1], [0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(curve.model, 0.25)
    assert (curve.model >= np.maximum(curve.everyone, 0) - 1e-12).all()


def test_decision_curves_are_for_two_classes() -> None:
    with pytest.raises(ConfigError, match="takes two classes, not 3"):
        decision_curve(overconfident(1.0, 3, 20))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        decision_curve(FOUR, [1.0])
