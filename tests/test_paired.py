"""Comparing two configurations: the corrected t-test, paired bootstrap and Holm's correction in closed cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from mhim.errors import CohortError
from mhim.metrics import ALL_METRICS, Predictions
from mhim.paired import (
    PairedComparison,
    bootstrap_p_value,
    compare_paired,
    correct_for_many,
    corrected_resampled_t,
    holm,
)
from mhim.resampling import CaseDraws

LAW = settings(deadline=None, max_examples=60)


def part(seed: int, gap: float = 1.0, n: int = 40, name: str = "c") -> Predictions:
    rng = np.random.default_rng(seed)
    y_true = np.arange(n) % 2
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + gap * (y_true - 0.5))))
    cases = np.array([f"{name}{i:03d}" for i in range(n)])
    return Predictions(cases, y_true, (score >= 0.5).astype(np.int64), np.stack([1 - score, score], axis=1))


def test_without_overlap_it_is_the_t_test() -> None:
    differences = np.array([0.01, 0.03, -0.01, 0.02, 0.05])
    found, expected = corrected_resampled_t(differences, 0.0), ttest_1samp(differences, 0.0)
    assert found is not None
    assert (found.t, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_the_overlap_of_training_sets_widens_by_its_formula() -> None:
    """Ten folds: n_test / n_train = 1 / 9, so that t shrinks by sqrt((1/10) / (1/10 + 1/9))."""
    differences = np.random.default_rng(0).normal(0.02, 0.02, 10)
    plain, corrected = corrected_resampled_t(differences, 0.0), corrected_resampled_t(differences, 1 / 9)
    assert plain is not None
    assert corrected is not None
    assert corrected.t / plain.t == pytest.approx(np.sqrt(0.1 / (0.1 + 1 / 9)))


def test_the_correction_keeps_the_level_where_the_plain_test_does_not() -> None:
    """Differences of overlapping training sets correlate by n_test / (n_test + n_train), as the correction assumes."""
    rng = np.random.default_rng(0)
    rho, count, rounds = 0.2, 10, 1500
    shared = np.sqrt(rho) * rng.normal(size=(rounds, 1)) + np.sqrt(1 - rho) * rng.normal(size=(rounds, count))
    ratio = rho / (1 - rho)
    wrong = {r: np.mean([corrected_resampled_t(row, r).p_value < 0.05 for row in shared]) for r in (0.0, ratio)}  # pyright: ignore
    assert wrong[0.0] > 0.15
    assert 0.04 <= wrong[ratio] <= 0.06


@pytest.mark.parametrize(
    ("differences", "expected"), [([], None), ([0.1], None), ([0.1, 0.1], None), ([0.0, 0.0], 1.0)]
)
def test_differences_without_spread_are_not_judged(differences: list[float], expected: float | None) -> None:
    found = corrected_resampled_t(np.array(differences), 0.25)
    assert (None if found is None else found.p_value) == expected


def test_a_run_against_itself_differs_by_nothing() -> None:
    folds = [part(seed, name=f"f{seed}_") for seed in range(3)]
    draws = CaseDraws.draw([case for fold in folds for case in fold.case_id], 200, 0)
    for metric in ALL_METRICS:
        found = compare_paired(folds, folds, draws, 0.5, metric)
        assert found.difference == 0.0
        assert found.per_part == (0.0, 0.0, 0.0)
        assert found.bootstrap == (0.0, 0.0)
        assert found.bootstrap_p == found.p_value == 1.0
        assert (found.delong is not None) == (metric == "auroc")


def test_the_difference_is_second_minus_first_part_by_part() -> None:
    first, second = (
        [part(seed + shift, gap, name=f"f{seed}_") for seed in range(3)] for shift, gap in ((0, 0.2), (9, 3))
    )
    draws = CaseDraws.draw([case for fold in first for case in fold.case_id], 500, 0)
    found = compare_paired(first, second, draws, 0.5)
    expected = [ALL_METRICS["auroc"](b) - ALL_METRICS["auroc"](a) for a, b in zip(first, second, strict=True)]  # pyright: ignore
    assert found.per_part == pytest.approx(expected)
    assert found.difference == pytest.approx(np.mean(expected))
    assert found.std == pytest.approx(np.std(expected))
    assert found.delong is not None
    assert found.delong.value == pytest.approx(found.difference)
    assert found.bootstrap is not None
    assert 0 < found.bootstrap[0] < found.difference < found.bootstrap[1]
    assert found.bootstrap_p == pytest.approx(2 / 501)
    turned = compare_paired(second, first, draws, 0.5)
    assert turned.difference == -found.difference
    assert turned.p_value == pytest.approx(found.p_value)


def test_bootstrap_and_delong_agree_about_the_interval() -> None:
    first, second = [part(0, 1.0, 400)], [part(1, 1.5, 400)]
    found = compare_paired(first, second, CaseDraws.draw(list(first[0].case_id), 2000, 0), 0.0)
    assert found.delong is not None
    assert found.bootstrap == pytest.approx(found.delong.interval, abs=0.01)


def test_parts_of_other_slides_are_refused() -> None:
    draws = CaseDraws.draw(list(part(0).case_id), 10, 0)
    with pytest.raises(CohortError, match="part 0 holds other slides"):
        compare_paired([part(0)], [part(0, name="d")], draws, 0.2)
    with pytest.raises(CohortError, match="1 parts cannot be paired with 2"):
        compare_paired([part(0), part(1)], [part(0)], draws, 0.2)


def test_bootstrap_p_values_in_closed_cases() -> None:
    assert bootstrap_p_value(np.arange(1.0, 100.0)) == pytest.approx(2 / 100)
    assert bootstrap_p_value(np.array([-1.0, 1.0, -1.0, 1.0])) == 1.0
    assert bootstrap_p_value(np.array([np.nan, np.nan, 1.0])) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None, 0.02, None]) == [None, 0.02, None]


@LAW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    """p-values in rising order against 0.05 / m, 0.05 / (m - 1), ... until the first that is not below."""
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: (p_values[i], i))):
        if p_values[index] * (len(p_values) - step) > 0.05:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p is not None and p <= 0.05} == rejected


def test_a_table_is_corrected_as_one_family() -> None:
    draws = CaseDraws.draw([case for s in range(4) for case in part(s, name=f"f{s}_").case_id], 100, 0)
    base = [part(s, 0.5, name=f"f{s}_") for s in range(4)]
    table: list[PairedComparison] = [
        compare_paired(base, [part(s + 10 * k, 1.0, name=f"f{s}_") for s in range(4)], draws, 1 / 3) for k in (1, 2, 3)
    ]
    assert [each.holm_p for each in table] == [None] * 3
    assert [each.holm_p for each in correct_for_many(table)] == holm([each.p_value for each in table])
