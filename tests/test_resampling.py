"""Case bootstrap: weighted metrics are scikit-learn's on repeated rows; intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from mhim.delong import delong
from mhim.metrics import ALL_METRICS, METRICS, Predictions
from mhim.resampling import RESAMPLED, CaseDraws, percentile_interval, resampled_mean

LAW = settings(deadline=None, max_examples=80)
SCORES = [0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0]


@st.composite
def weighted_predictions(draw: st.DrawFn) -> tuple[Predictions, np.ndarray]:
    """Predictions with many ties, and integer weights with zeros."""
    n_classes = draw(st.integers(2, 3))
    size = draw(st.integers(2, 12))
    y_true = draw(st.lists(st.integers(0, n_classes - 1), min_size=size, max_size=size))
    y_pred = draw(st.lists(st.integers(0, n_classes - 1), min_size=size, max_size=size))
    rows = st.lists(st.sampled_from(SCORES), min_size=n_classes, max_size=n_classes)
    probabilities = draw(st.lists(rows, min_size=size, max_size=size))
    weights = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    cases = np.array([f"c{i}" for i in range(size)])
    return Predictions(cases, np.array(y_true), np.array(y_pred), np.array(probabilities)), np.array([weights])


def repeat(predictions: Predictions, weights: np.ndarray) -> Predictions:
    return Predictions(
        *(
            np.repeat(values, weights, axis=0)
            for values in (predictions.case_id, predictions.y_true, predictions.y_pred, predictions.probabilities)
        )
    )


@LAW
@given(weighted_predictions())
def test_integer_weights_are_repeated_slides(drawn: tuple[Predictions, np.ndarray]) -> None:
    predictions, weights = drawn
    repeated = repeat(predictions, weights[0])
    for name in RESAMPLED:
        (found,) = RESAMPLED[name](predictions, weights.astype(np.float64))
        expected = ALL_METRICS[name](repeated) if len(repeated) else None
        if expected is None:
            assert np.isnan(found), name
        else:
            assert found == pytest.approx(expected, abs=1e-12), name


@LAW
@given(weighted_predictions())
def test_weights_of_one_change_nothing(drawn: tuple[Predictions, np.ndarray]) -> None:
    predictions, weights = drawn
    for name, metric in ALL_METRICS.items():
        expected = metric(predictions)
        found = RESAMPLED[name](predictions, np.ones((2, weights.shape[1])))
        np.testing.assert_allclose(found, [np.nan if expected is None else expected] * 2, atol=1e-12)


@LAW
@given(weighted_predictions(), st.floats(0.5, 4))
def test_weights_agree_with_scikit_learns_sample_weights(drawn: tuple[Predictions, np.ndarray], scale: float) -> None:
    predictions, weights = drawn
    weighing = weights.astype(np.float64) * scale
    kept = weighing[0] > 0
    positive, score = predictions.y_true[kept] == 1, predictions.probabilities[kept, 1]
    if predictions.n_classes > 2 or positive.all() or not positive.any():
        return
    options = {"sample_weight": weighing[0][kept]}
    for name, judge in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        assert RESAMPLED[name](predictions, weighing)[0] == pytest.approx(judge(positive, score, **options), abs=1e-9)


def test_every_metric_can_be_resampled() -> None:
    assert RESAMPLED.keys() == ALL_METRICS.keys()


def test_one_call_scores_every_resample() -> None:
    y_true, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.8, 0.3])
    predictions = Predictions(np.array(list("abcd")), y_true, (score > 0.5) * 1, np.stack([1 - score, score], axis=1))
    weights = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=np.float64)
    np.testing.assert_allclose(RESAMPLED["auroc"](predictions, weights), [0.75, 1.0, 0.0, np.nan])


def test_every_resample_draws_as_many_cases_as_there_are() -> None:
    draws = CaseDraws.draw(["b", "a", "b", "c"], 50, seed=0)
    assert draws.cases.tolist() == ["a", "b", "c"]
    assert (draws.counts.sum(axis=1) == 3).all()
    assert len(np.unique(draws.counts, axis=0)) > 1


def test_draws_do_not_depend_on_the_order_of_slides() -> None:
    first, second = CaseDraws.draw(list("abcabc"), 20, seed=3), CaseDraws.draw(list("cba"), 20, seed=3)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert not np.array_equal(first.counts, CaseDraws.draw(list("abc"), 20, seed=4).counts)


def test_the_slides_of_a_case_are_drawn_together() -> None:
    draws = CaseDraws.draw(["a", "b", "c"], 30, seed=0)
    weights = draws.weights(np.array(["b", "a", "b", "b"]))
    np.testing.assert_array_equal(weights, draws.counts[:, [1, 0, 1, 1]])


def noisy(cases: np.ndarray, rng: np.random.Generator, gap: float = 1.0) -> Predictions:
    """One slide per entry, alternately negative and positive, scores normal with a gap between the classes."""
    y_true = np.arange(len(cases)) % 2
    score = 1 / (1 + np.exp(-(rng.normal(size=len(cases)) + gap * (y_true - 0.5))))
    return Predictions(cases, y_true, (score >= 0.5).astype(np.int64), np.stack([1 - score, score], axis=1))


def copies(predictions: Predictions, times: int) -> Predictions:
    return repeat(predictions, np.full(len(predictions), times))


@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_slides_within_their_case_leave_the_interval_as_it_is(metric: str) -> None:
    """Four equal slides of one case are one piece of evidence; four cases would be four."""
    once = noisy(np.array([f"c{i:02d}" for i in range(40)]), np.random.default_rng(0))
    four = copies(once, 4)
    apart = Predictions(np.arange(160).astype(str), four.y_true, four.y_pred, four.probabilities)

    def width(predictions: Predictions) -> float:
        draws = CaseDraws.draw(list(predictions.case_id), 1000, seed=0)
        interval = percentile_interval(resampled_mean([predictions], metric, draws))
        assert interval is not None
        return interval[1] - interval[0]

    assert width(four) == pytest.approx(width(once), rel=1e-9)
    assert 1.5 < width(four) / width(apart) < 2.7  # the square root of four


def test_the_interval_of_a_recall_is_the_binomial_one() -> None:
    """All negatives right and 70 of 100 positives: balanced accuracy is a half plus half a binomial share."""
    y_true = np.repeat([0, 1], [100, 100])
    y_pred = np.repeat([0, 0, 1], [100, 30, 70])
    score = y_pred.astype(np.float64)
    predictions = Predictions(np.arange(200).astype(str), y_true, y_pred, np.stack([1 - score, score], axis=1))
    draws = CaseDraws.draw(list(predictions.case_id), 4000, seed=0)
    interval = percentile_interval(resampled_mean([predictions], "balanced_accuracy", draws))
    spread = 1.96 * 0.5 * np.sqrt(0.7 * 0.3 / 100)
    assert interval == pytest.approx((0.85 - spread, 0.85 + spread), abs=0.006)


def clustered(names: np.ndarray, gap: float, rng: np.random.Generator) -> Predictions:
    """One to three slides a case, which resemble each other: half of the variance of a normal score is the case's."""
    owner = np.repeat(np.arange(len(names)), rng.integers(1, 4, len(names)))
    noise = np.sqrt(0.5) * (rng.normal(size=len(names))[owner] + rng.normal(size=len(owner)))
    score = norm.cdf(gap * (owner % 2) + noise)
    return Predictions(names[owner], owner % 2, (score >= 0.5).astype(np.int64), np.stack([1 - score, score], axis=1))


def holds(interval: tuple[float, float] | None, value: float) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def test_intervals_over_cases_cover_as_they_say_and_over_slides_they_do_not() -> None:
    """95 % intervals over 1500 cohorts of 120 cases with AUROC Phi(1.5 / sqrt 2) = 0.856 cover 93 to 97 %."""
    rng, names, truth, rounds = np.random.default_rng(0), np.array([f"c{i:03d}" for i in range(120)]), 0.855562, 1500
    draws = CaseDraws.draw(list(names), 400, seed=1)
    bootstrap, by_case, by_slide = 0, 0, 0
    for _ in range(rounds):
        part = clustered(names, 1.5, rng)
        apart = Predictions(np.arange(len(part)).astype(str), part.y_true, part.y_pred, part.probabilities)
        cases, slides = delong([part]), delong([apart])
        bootstrap += holds(percentile_interval(resampled_mean([part], "auroc", draws)), truth)
        by_case += holds(cases and cases.interval, truth)
        by_slide += holds(slides and slides.interval, truth)
    assert 0.93 <= bootstrap / rounds <= 0.97
    assert 0.93 <= by_case / rounds <= 0.97
    assert by_slide / rounds < 0.92  # slides of a case are not independent


def test_with_few_cases_the_bootstrap_covers_less_than_it_says() -> None:
    """20 cases, AUROC 0.856: docs/evaluation.md says how far coverage falls; DeLong's logit interval holds better."""
    rng, names, truth, rounds = np.random.default_rng(0), np.array([f"c{i:03d}" for i in range(20)]), 0.855562, 500
    draws = CaseDraws.draw(list(names), 400, seed=1)
    bootstrap, exact = 0, 0
    for _ in range(rounds):
        part = clustered(names, 1.5, rng)
        found = delong([part])
        bootstrap += holds(percentile_interval(resampled_mean([part], "auroc", draws)), truth)
        exact += holds(found and found.interval, truth)
    assert 0.83 <= bootstrap / rounds <= 0.92
    assert exact > bootstrap


def test_the_mean_over_folds_uses_one_draw_of_cases_for_all_folds() -> None:
    rng = np.random.default_rng(0)
    folds = [noisy(np.array([f"f{fold}_{i}" for i in range(12)]), rng) for fold in range(3)]
    draws = CaseDraws.draw([case for fold in folds for case in fold.case_id], 100, seed=0)
    each = np.array([resampled_mean([fold], "auroc", draws) for fold in folds])
    np.testing.assert_allclose(resampled_mean(folds, "auroc", draws), np.nanmean(each, axis=0))


def test_a_resample_that_no_fold_defines_is_undefined() -> None:
    one_class = Predictions(np.array(["a", "b"]), np.array([1, 1]), np.array([1, 1]), np.array([[0.2, 0.8]] * 2))
    draws = CaseDraws.draw(["a", "b"], 10, seed=0)
    assert np.isnan(resampled_mean([one_class], "auroc", draws)).all()


def test_percentiles_in_a_closed_case() -> None:
    assert percentile_interval(np.arange(101) / 100) == pytest.approx((0.025, 0.975))
    assert percentile_interval(np.arange(101) / 100, level=0.5) == pytest.approx((0.25, 0.75))


def test_an_interval_needs_half_of_the_resamples() -> None:
    assert percentile_interval(np.array([1.0, 2.0, np.nan, np.nan])) is not None
    assert percentile_interval(np.array([1.0, np.nan, np.nan])) is None
