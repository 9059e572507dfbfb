"""The metrics beside the headline: by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, cohen_kappa_score, roc_curve
from sklearn.metrics import log_loss as reference_log_loss

from mhim.metrics import (
    FURTHER_METRICS,
    Predictions,
    accuracy,
    brier,
    ece,
    equal_mass_bins,
    equal_width_bins,
    kappa,
    log_loss,
    said_and_happened,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)

LAW = settings(deadline=None, max_examples=60)


def binary(y_true: list[int], score: list[float]) -> Predictions:
    p = np.array(score, dtype=np.float64)
    cases = np.array([f"c{i}" for i in range(len(y_true))], dtype=np.str_)
    return Predictions(
        cases, np.array(y_true, dtype=np.int64), (p >= 0.5).astype(np.int64), np.stack([1 - p, p], axis=1)
    )


def many_classes(seed: int, n: int = 60, c: int = 3) -> Predictions:
    rng = np.random.default_rng(seed)
    raw = rng.random((n, c))
    y_true = np.arange(n) % c
    p = raw / raw.sum(axis=1, keepdims=True)
    return Predictions(np.arange(n).astype(str), y_true, p.argmax(axis=1), p)


rows = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=20)


@LAW
@given(rows)
def test_accuracy_kappa_log_loss_and_brier_are_scikit_learns(drawn: list[tuple[int, float]]) -> None:
    given_ = binary([label for label, _ in drawn], [score for _, score in drawn])
    assert accuracy(given_) == pytest.approx(accuracy_score(given_.y_true, given_.y_pred))
    assert brier(given_) == pytest.approx(brier_score_loss(given_.y_true, given_.probabilities[:, 1], pos_label=1))
    clipped = np.clip(given_.probabilities, 1e-15, 1)
    expected = reference_log_loss(given_.y_true, clipped / clipped.sum(axis=1, keepdims=True), labels=[0, 1])
    assert log_loss(given_) == pytest.approx(expected, abs=1e-9)
    if len({*given_.y_true.tolist(), *given_.y_pred.tolist()}) == 2:
        assert kappa(given_) == pytest.approx(cohen_kappa_score(given_.y_true, given_.y_pred))


def test_three_classes_are_scikit_learns() -> None:
    given_ = many_classes(0)
    assert log_loss(given_) == pytest.approx(reference_log_loss(given_.y_true, given_.probabilities))
    assert brier(given_) == pytest.approx(brier_score_loss(given_.y_true, given_.probabilities, labels=[0, 1, 2]))
    assert kappa(given_) == pytest.approx(cohen_kappa_score(given_.y_true, given_.y_pred))


def test_kappa_by_hand() -> None:
    """Agreement 3/4; chance 1/2 x 1/4 + 1/2 x 3/4 = 1/2."""
    assert kappa(binary([1, 1, 0, 0], [0.9, 0.1, 0.1, 0.2])) == pytest.approx(0.5)


def test_kappa_is_undefined_where_everybody_says_the_same() -> None:
    assert kappa(binary([1, 1], [0.9, 0.8])) is None
    assert kappa(binary([1, 1], [0.1, 0.2])) == 0.0


def test_a_sure_error_costs_a_finite_loss() -> None:
    assert log_loss(binary([1], [0.0])) == pytest.approx(-np.log(1e-15))


def test_nothing_is_scored_without_slides() -> None:
    for name, metric in FURTHER_METRICS.items():
        assert metric(binary([], [])) is None, name


def test_rates_at_a_fixed_rate_by_hand() -> None:
    """20 negatives, one of them above three of four positives: specificity 0.95 is reached with that one let in."""
    negatives = [0.6, *np.linspace(0.01, 0.3, 19)]
    given_ = binary([1, 1, 1, 1] + [0] * 20, [0.9, 0.5, 0.45, 0.2, *negatives])
    assert sensitivity_at_specificity(given_, 0.95) == pytest.approx(0.75)
    assert sensitivity_at_specificity(given_, 0.96) == pytest.approx(0.25)
    assert specificity_at_sensitivity(given_, 0.75) == pytest.approx(0.95)
    below = sum(score < 0.2 for score in negatives)
    assert specificity_at_sensitivity(given_, 0.95) == pytest.approx(below / 20)


@LAW
@given(rows.filter(lambda drawn: len({label for label, _ in drawn}) == 2), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_no_threshold_does_better_at_the_fixed_rate(drawn: list[tuple[int, float]], rate: float) -> None:
    given_ = binary([label for label, _ in drawn], [score for _, score in drawn])
    fpr, tpr, _ = roc_curve(given_.y_true, given_.probabilities[:, 1], drop_intermediate=False)
    assert sensitivity_at_specificity(given_, rate) == max(
        t for f, t in zip(fpr, tpr, strict=True) if 1 - f >= rate - 1e-9
    )
    expected = max(1 - f for f, t in zip(fpr, tpr, strict=True) if t >= rate - 1e-9)
    assert specificity_at_sensitivity(given_, rate) == pytest.approx(expected)


def test_ece_by_hand() -> None:
    """Bins [0.2, 0.3) with promise 0.25 and outcome 1/2, and [0.9, 1] with promise 0.95 and outcome 1."""
    given_ = binary([0, 1, 1, 1], [0.22, 0.28, 0.9, 1.0])
    assert ece(given_) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)


def test_ece_with_equal_mass_by_hand() -> None:
    """Two bins of two: promises 0.1 and 0.35, outcomes 0 and 1/2 and then 0.65, outcome 1."""
    given_ = binary([0, 1, 1, 1], [0.1, 0.2, 0.6, 0.7])
    assert ece(given_, bins=2, equal_mass=True) == pytest.approx((2 * abs(0.5 - 0.15) + 2 * abs(1 - 0.65)) / 4)


def test_ece_of_top_labels_is_that_of_a_loop() -> None:
    given_ = many_classes(1, 200)
    said, happened = said_and_happened(given_)
    total = 0.0
    for index in range(10):
        inside = (said >= index / 10) & ((said < (index + 1) / 10) | (index == 9))
        if inside.any():
            total += inside.mean() * abs(happened[inside].mean() - said[inside].mean())
    assert ece(given_) == pytest.approx(total)


def test_a_calibrated_forecast_has_an_error_that_vanishes() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    given_ = binary((rng.random(200_000) < p).astype(int).tolist(), p.tolist())
    assert ece(given_) == pytest.approx(0.0, abs=0.005)
    assert ece(given_, equal_mass=True) == pytest.approx(0.0, abs=0.005)
    assert brier(given_) == pytest.approx(1 / 6, abs=0.003)  # E[p (1 - p)]


@LAW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_are_intervals_and_equal_values_share_one(said: list[float], bins: int) -> None:
    values = np.sort(np.array(said))
    for place in (equal_width_bins(values, bins), equal_mass_bins(values, bins)):
        assert ((place >= 0) & (place < bins)).all()
        assert (np.diff(place) >= 0).all()
        assert (np.diff(place)[np.diff(values) == 0] == 0).all()


def test_bins_of_equal_mass_hold_equally_many_slides() -> None:
    assert np.bincount(equal_mass_bins(np.random.default_rng(0).random(100), 10)).tolist() == [10] * 10
