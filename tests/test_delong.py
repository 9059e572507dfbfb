"""DeLong's variance against brute force over all pairs of slides, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mhim.delong import DeLong, delong, delong_difference, moved_auroc, structural_components
from mhim.metrics import Predictions

LAW = settings(deadline=None, max_examples=60)


def predictions(y_true: np.ndarray, score: np.ndarray, case_id: np.ndarray | None = None) -> Predictions:
    cases = np.array([f"c{i:04d}" for i in range(len(y_true))]) if case_id is None else case_id
    return Predictions(cases, y_true, (score >= 0.5).astype(np.int64), np.stack([1 - score, score], axis=1))


def brute_force(y_true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (K,) and covariance (K, K) of DeLong et al. 1988, equations 3 to 6, by loops over pairs."""
    positives, negatives = np.flatnonzero(y_true == 1), np.flatnonzero(y_true == 0)
    m, n, k = len(positives), len(negatives), len(scores)
    psi = np.zeros((k, m, n))
    for r in range(k):
        for i, a in enumerate(positives):
            for j, b in enumerate(negatives):
                psi[r, i, j] = 1.0 if scores[r, a] > scores[r, b] else 0.5 if scores[r, a] == scores[r, b] else 0.0
    theta = psi.mean(axis=(1, 2))
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    s10 = np.array([[((v10[r] - theta[r]) * (v10[s] - theta[s])).sum() / (m - 1) for s in range(k)] for r in range(k)])
    s01 = np.array([[((v01[r] - theta[r]) * (v01[s] - theta[s])).sum() / (n - 1) for s in range(k)] for r in range(k)])
    return theta, s10 / m + s01 / n


two_readers = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.6, 0.9]), st.floats(0, 1)),
    min_size=4,
    max_size=25,
).filter(lambda rows: 2 <= sum(label for label, *_ in rows) <= len(rows) - 2)


@LAW
@given(two_readers)
def test_variances_and_covariance_are_those_of_all_pairs(rows: list[tuple[int, float, float]]) -> None:
    y_true, scores = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows]).T
    theta, covariance = brute_force(y_true, scores)
    owner = np.arange(len(rows))
    moved = [moved_auroc(y_true == 1, score, owner, len(rows)) for score in scores]
    assert [each.value for each in moved if each] == pytest.approx(theta.tolist(), abs=1e-12)
    influence = np.array([each.influence for each in moved if each])
    np.testing.assert_allclose(influence @ influence.T, covariance, atol=1e-12)


@LAW
@given(two_readers)
def test_the_difference_has_the_variance_of_a_contrast(rows: list[tuple[int, float, float]]) -> None:
    y_true, scores = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows]).T
    theta, covariance = brute_force(y_true, scores)
    found = delong_difference([predictions(y_true, scores[0])], [predictions(y_true, scores[1])])
    assert found is not None
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert found.value == pytest.approx(theta[1] - theta[0], abs=1e-12)
    assert found.standard_error**2 == pytest.approx(variance, abs=1e-12)
    if variance > 1e-10:
        assert found.p_value == pytest.approx(2 * norm.sf(abs(found.value) / np.sqrt(variance)), abs=1e-9)


def obuchowski(y_true: np.ndarray, score: np.ndarray, case_id: np.ndarray) -> float:
    """Variance of an AUROC of clustered slides: Obuchowski 1997, equations 6 to 9, by loops."""
    area, above, below = structural_components(y_true == 1, score)
    m, n = len(above), len(below)
    cases = np.unique(case_id)
    of = {case: (above[case_id[y_true == 1] == case], below[case_id[y_true == 0] == case]) for case in cases}
    i10, i01 = sum(len(a) > 0 for a, _ in of.values()), sum(len(b) > 0 for _, b in of.values())
    s10 = i10 / ((i10 - 1) * m) * sum((a.sum() - len(a) * area) ** 2 for a, _ in of.values())
    s01 = i01 / ((i01 - 1) * n) * sum((b.sum() - len(b) * area) ** 2 for _, b in of.values())
    mixed = np.sqrt(i10 / (i10 - 1) * i01 / (i01 - 1))  # Obuchowski: I / (I - 1)
    s11 = mixed * sum((a.sum() - len(a) * area) * (b.sum() - len(b) * area) for a, b in of.values())
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def test_slides_of_a_case_are_summed() -> None:
    rng = np.random.default_rng(0)
    y_true, case_id = rng.integers(0, 2, 60), np.sort(rng.integers(0, 20, 60)).astype(str)
    score = rng.random(60).round(1)
    found = delong([predictions(y_true, score, case_id)])
    assert found is not None
    assert found.standard_error**2 == pytest.approx(obuchowski(y_true, score, case_id), rel=1e-12)


def test_copies_of_slides_within_their_case_leave_the_error_as_it_is() -> None:
    rng = np.random.default_rng(1)
    y_true, score = np.arange(40) % 2, rng.random(40)
    once = predictions(y_true, score)
    thrice = predictions(np.repeat(y_true, 3), np.repeat(score, 3), np.repeat(once.case_id, 3))
    one, three = delong([once]), delong([thrice])
    assert one is not None
    assert three is not None
    assert three.standard_error == pytest.approx(one.standard_error, rel=1e-12)


def test_parts_with_other_cases_are_independent() -> None:
    """The mean of two AUROCs over different cases has half the root of the summed variances."""
    rng = np.random.default_rng(2)
    parts = [
        predictions(np.arange(30) % 2, rng.random(30), np.array([f"{name}{i}" for i in range(30)])) for name in "ab"
    ]
    each = [found for part in parts if (found := delong([part])) is not None]
    together = delong(parts)
    assert together is not None
    assert together.value == pytest.approx(np.mean([part.value for part in each]))
    assert together.standard_error == pytest.approx(np.hypot(*(part.standard_error for part in each)) / 2)


def test_the_same_part_twice_is_no_more_evidence_than_once() -> None:
    """As two seeds that predict alike."""
    rng = np.random.default_rng(3)
    part = predictions(np.arange(30) % 2, rng.random(30))
    one, two = delong([part]), delong([part, part])
    assert one is not None
    assert two is not None
    assert two.standard_error == pytest.approx(one.standard_error)


def test_three_classes_are_macro_averaged() -> None:
    rng = np.random.default_rng(4)
    raw = rng.random((60, 3))
    y_true = np.arange(60) % 3
    part = Predictions(np.arange(60).astype(str), y_true, raw.argmax(axis=1), raw / raw.sum(axis=1, keepdims=True))
    found = delong([part])
    assert found is not None
    expected = roc_auc_score(y_true, part.probabilities, multi_class="ovr", average="macro")
    assert found.value == pytest.approx(expected)


def test_the_interval_of_an_auroc_stays_within_its_range() -> None:
    found = delong([predictions(np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.55, 0.5, 0.8, 0.9]))])
    assert found is not None
    assert found.interval is not None
    assert 0 < found.interval[0] < found.value < found.interval[1] < 1


def test_a_perfect_ranking_has_no_interval() -> None:
    found = delong([predictions(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))])
    assert found == DeLong(1.0, 0.0, None, None)


def test_one_class_has_no_auroc() -> None:
    part = predictions(np.array([1, 1]), np.array([0.1, 0.2]))
    assert delong([part]) is None
    assert delong_difference([part], [part]) is None


def test_equal_rankings_differ_by_nothing() -> None:
    rng = np.random.default_rng(5)
    y_true, score = np.arange(20) % 2, rng.random(20)
    found = delong_difference([predictions(y_true, score)], [predictions(y_true, score**3)])
    assert found == DeLong(0.0, 0.0, None, 1.0)


def test_turning_the_comparison_round_turns_the_sign() -> None:
    rng = np.random.default_rng(6)
    y_true = np.arange(50) % 2
    first, second = (predictions(y_true, rng.random(50)) for _ in range(2))
    there, back = delong_difference([first], [second]), delong_difference([second], [first])
    assert there is not None
    assert back is not None
    assert there.value == -back.value
    assert there.p_value == back.p_value


def test_intervals_cover_and_tests_keep_their_level() -> None:
    """Two noisy readings of one normal score one apart: 95 % intervals cover 93 to 97 %, 5 % tests reject as much."""
    rng = np.random.default_rng(7)
    y_true, gap = np.arange(120) % 2, 1.0
    truth = float(norm.cdf(gap / np.sqrt(2 * (1 + 0.5))))
    covered, rejected = 0, 0
    rounds = 2000
    for _ in range(rounds):
        shared = rng.normal(size=120) + gap * y_true
        one, other = (predictions(y_true, norm.cdf(shared + np.sqrt(0.5) * rng.normal(size=120))) for _ in range(2))
        area, difference = delong([one]), delong_difference([one], [other])
        assert area is not None
        assert area.interval is not None
        assert difference is not None
        assert difference.p_value is not None
        covered += area.interval[0] <= truth <= area.interval[1]
        rejected += difference.p_value < 0.05
    assert 0.93 <= covered / rounds <= 0.97
    assert 0.035 <= rejected / rounds <= 0.065
