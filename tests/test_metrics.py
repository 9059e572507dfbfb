"""Metrics: hand-computed values, undefined where a class is absent, a threshold that is the best there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mhim.metrics import METRICS, Predictions, auprc, auroc, balanced_accuracy, f1, predict_classes, youden_threshold

LAW = settings(deadline=None, max_examples=80)


def binary(y_true: list[int], scores: list[float], y_pred: list[int] | None = None) -> Predictions:
    score = np.array(scores)
    said = (score >= 0.5).astype(np.int64) if y_pred is None else np.array(y_pred)
    cases = np.array([f"c{i}" for i in range(len(scores))])
    return Predictions(cases, np.array(y_true), said, np.stack([1 - score, score], axis=1))


THREE = Predictions(
    np.array(["a", "b", "c", "d", "e"]),
    np.array([0, 0, 1, 2, 2]),
    np.array([0, 1, 1, 2, 0]),
    np.array([[0.8, 0.1, 0.1], [0.3, 0.5, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.1, 0.4]]),
)


def test_auroc_counts_pairs_in_the_right_order_and_ties_half() -> None:
    """Positives 0.9, 0.4; negatives 0.4, 0.1: pairs 1, 1, 1/2, 1."""
    assert auroc(binary([1, 1, 0, 0], [0.9, 0.4, 0.4, 0.1])) == pytest.approx(3.5 / 4)


def test_auroc_of_an_inverted_order_is_zero() -> None:
    assert auroc(binary([0, 1], [0.9, 0.1])) == 0.0


def test_auprc_is_the_mean_precision_at_the_positives() -> None:
    """Order: positive, negative, positive: precision 1 and 2/3."""
    assert auprc(binary([1, 0, 1], [0.9, 0.8, 0.7])) == pytest.approx((1 + 2 / 3) / 2)


def test_auprc_of_equal_scores_is_the_share_of_positives() -> None:
    assert auprc(binary([1, 0, 0, 0], [0.5] * 4)) == pytest.approx(0.25)


def test_balanced_accuracy_is_the_mean_recall() -> None:
    """1 of 1 positives, 1 of 4 negatives."""
    assert balanced_accuracy(binary([1, 0, 0, 0, 0], [0.9, 0.9, 0.9, 0.9, 0.1])) == pytest.approx((1 + 0.25) / 2)


def test_f1_is_of_the_positive_class() -> None:
    """2 true positives, 1 false positive, 1 false negative."""
    assert f1(binary([1, 1, 1, 0, 0], [0.9, 0.9, 0.1, 0.9, 0.1])) == pytest.approx(4 / 6)


def test_f1_without_any_positive_call_is_zero() -> None:
    assert f1(binary([1, 0], [0.2, 0.1])) == 0.0


def test_three_classes_are_averaged_one_against_the_rest() -> None:
    """By hand: class 0 ranks 5 of 6 pairs, class 1 ranks 4 of 4, class 2 ranks 6 of 6."""
    assert auroc(THREE) == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert auprc(THREE) == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    assert balanced_accuracy(THREE) == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert f1(THREE) == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)


def test_three_class_auroc_equals_scikit_learns_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    raw = rng.random((40, 3))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    y_true = np.arange(40) % 3
    predictions = Predictions(np.arange(40).astype(str), y_true, probabilities.argmax(axis=1), probabilities)
    expected = roc_auc_score(y_true, probabilities, multi_class="ovr", average="macro")
    assert auroc(predictions) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("label", [0, 1])
def test_every_metric_is_undefined_with_one_class(name: str, label: int) -> None:
    assert METRICS[name](binary([label] * 3, [0.9, 0.5, 0.1])) is None


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_three_classes_is_undefined_when_one_is_absent(name: str) -> None:
    present = THREE.y_true != 1
    part = Predictions(
        THREE.case_id[present], THREE.y_true[present], THREE.y_pred[present], THREE.probabilities[present]
    )
    assert METRICS[name](part) is None


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_perfect_predictions_is_one(name: str) -> None:
    assert METRICS[name](binary([0, 1, 1], [0.1, 0.8, 0.9])) == 1.0


@pytest.mark.parametrize(
    ("y_true", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9], 0.45),  # the middle of the gap
        ([1, 1, 0, 0], [0.6, 0.9, 0.1, 0.3], 0.45),  # whatever the order of slides
        ([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.9], 0.7),  # J = 1/2 at 0.9 and at 0.3: the higher
        ([0, 1], [0.5, 0.5], 1.0),  # nothing separates: nobody is called positive
        ([0, 1], [0.8, 0.2], 1.0),  # worse than chance: nobody is called positive
        ([1, 1], [0.2, 0.9], 0.5),  # one class
        ([0, 0], [0.2, 0.9], 0.5),
    ],
)
def test_threshold_in_closed_cases(y_true: list[int], scores: list[float], expected: float) -> None:
    found = youden_threshold(np.array(y_true), np.array(scores))
    if expected == 1.0:
        assert max(scores) < found <= 1.0
    else:
        assert found == pytest.approx(expected)


def separation(y_true: np.ndarray, said: np.ndarray) -> float:
    return float(said[y_true == 1].mean() - said[y_true == 0].mean())


scores_with_ties = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, np.nextafter(0.5, 1), 1.0])),
    min_size=2,
    max_size=15,
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@LAW
@given(scores_with_ties)
def test_no_other_threshold_separates_the_validation_slides_better(rows: list[tuple[int, float]]) -> None:
    y_true, scores = np.array([label for label, _ in rows]), np.array([score for _, score in rows])
    threshold = youden_threshold(y_true, scores)
    best = max(separation(y_true, scores >= other) for other in (*scores, 2.0))
    assert separation(y_true, scores >= threshold) == pytest.approx(best, abs=1e-12)


@LAW
@given(scores_with_ties)
def test_the_threshold_is_a_finite_number_that_does_not_depend_on_the_order_of_slides(
    rows: list[tuple[int, float]],
) -> None:
    y_true, scores = np.array([label for label, _ in rows]), np.array([score for _, score in rows])
    threshold = youden_threshold(y_true, scores)
    assert np.isfinite(threshold)
    assert threshold == youden_threshold(y_true[::-1], scores[::-1])


def test_two_classes_are_called_by_threshold_and_more_by_the_most_probable() -> None:
    two = np.array([[0.7, 0.3], [0.69, 0.31], [0.2, 0.8]])
    assert predict_classes(two, 0.31).tolist() == [0, 1, 1]
    assert predict_classes(two, None).tolist() == [0, 0, 1]
    assert predict_classes(THREE.probabilities, None).tolist() == [0, 1, 1, 2, 0]
