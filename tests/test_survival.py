"""Survival: bins and likelihood equal the reference numbers; concordance by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import CensoredData, ecdf

from mhim.errors import CohortError
from mhim.survival import (
    SurvivalPredictions,
    assign_bins,
    censoring_weights,
    concordance,
    concordance_ipcw,
    hazard_loss,
    resampled_c_index_ipcw,
    risk,
    survival_curve,
    time_bins,
)


def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "outputs" / "survival.json").read_text())


@pytest.mark.parametrize("study", ["blca", "luad", "lusc"])
def test_bins_of_a_published_table(shared: Path, study: str) -> None:
    expected = golden(shared)["discretisation"].get(study)
    if expected is None:
        pytest.skip("kept for independent checks")
    with (shared / "data" / "camelyon16_tcga_meta" / f"mhim_label_{study}_surv.csv").open() as file:
        rows = list(csv.DictReader(file))
    times = np.array([float(row["Event"]) for row in rows])
    events = np.array([row["Status"] == "1" for row in rows])
    edges = time_bins(times, events)
    np.testing.assert_allclose(edges[1:-1], expected["uncensored_quartile_edges"][1:-1], rtol=1e-12)
    found = assign_bins(times, edges)
    assert {row["ID"]: int(each) for row, each in zip(rows, found, strict=True)} == expected["labels"]
    assert int(events.sum()) == expected["events"]


def test_hazards_survival_risk_and_loss(shared: Path) -> None:
    example = golden(shared)["nll"]
    logits = torch.tensor(example["logits"])
    torch.testing.assert_close(torch.sigmoid(logits), torch.tensor(example["hazards"]))
    torch.testing.assert_close(survival_curve(logits), torch.tensor(example["S"]))
    torch.testing.assert_close(risk(logits), torch.tensor(example["risk"]))
    time_bin, event = torch.tensor(example["Y"]), torch.tensor(example["censored"]) == 0
    torch.testing.assert_close(hazard_loss(logits, time_bin, event), torch.tensor(example["loss_alpha0_each"]))
    assert float(hazard_loss(logits, time_bin, event).mean()) == pytest.approx(example["loss_alpha0_mean"], rel=1e-6)
    blended = hazard_loss(logits, time_bin, event, 0.4).mean()
    assert float(blended) == pytest.approx(example["loss_alpha04_mean"], rel=1e-6)


def test_a_likelihood_adds_up_to_one() -> None:
    """Over all bins of the event, and survival beyond the last."""
    logits = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(5, 5)
    event = hazard_loss(logits, torch.arange(5), torch.ones(5, dtype=torch.bool))
    assert float((-event).exp().sum() + survival_curve(logits)[0, -1]) == pytest.approx(1, abs=1e-12)


def test_too_few_events_for_the_bins() -> None:
    with pytest.raises(CohortError, match="1 events do not fill 4 bins"):
        time_bins(np.array([1.0, 2.0, 3.0]), np.array([False, True, False]))
    with pytest.raises(CohortError, match="0 events"):
        time_bins(np.array([1.0, 2.0]), np.array([False, False]))


def test_times_beyond_the_edges_fall_into_the_outer_bins() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    assert assign_bins(np.array([-5.0, 0.0, 1.0, 1.5, 9.0]), edges).tolist() == [0, 0, 1, 1, 1]


def test_concordance_by_hand() -> None:
    times, events = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, True])
    # comparable: (1,2), (1,3), (1,4), (3,4)
    assert concordance(times, events, np.array([4.0, 1.0, 3.0, 2.0])) == 1.0
    assert concordance(times, events, np.array([2.5, 1.0, 3.0, 2.0])) == 0.75
    assert concordance(times, events, np.ones(4)) == 0.5
    assert concordance(times, ~np.ones(4, dtype=bool), np.ones(4)) is None
    # equal times: an event comes before a censored case, two events are not compared
    assert concordance(np.array([1.0, 1.0]), np.array([True, False]), np.array([2.0, 1.0])) == 1.0
    assert concordance(np.array([1.0, 1.0]), np.array([True, True]), np.array([2.0, 1.0])) is None


def follow_up(seed: int, cases: int = 40, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (whole months, many equal, if there are ties), a third censored; risks that say something, some equal."""
    rng = np.random.default_rng(seed)
    death, leaving = rng.exponential(20, cases), rng.exponential(40, cases)
    risks = np.round(-death / 20 + rng.normal(size=cases), 1)
    times = np.minimum(death, leaving)
    return np.ceil(times) if ties else times, death <= leaving, risks


@pytest.mark.parametrize("seed", range(5))
def test_uno_concordance_is_that_of_counting_pairs(seed: int) -> None:
    times, events, risks = follow_up(seed)
    right = total = 0.0
    for i in np.flatnonzero(events):
        staying = 1.0
        for moment in np.unique(times[~events & (times < times[i])]):
            leaving = ((times == moment) & ~events).sum()
            staying *= 1 - leaving / ((times > moment).sum() + leaving)
        for j in range(len(times)):
            if times[j] > times[i] or (times[j] == times[i] and not events[j]):
                total += staying**-2
                right += staying**-2 * (0.5 if risks[i] == risks[j] else float(risks[i] > risks[j]))
    assert concordance_ipcw(times, events, risks) == pytest.approx(right / total)


@pytest.mark.parametrize(("seed", "expected"), [(0, 0.7180899559852001), (1, 0.7334441210974104)])
def test_uno_concordance_is_scikit_survivals(seed: int, expected: float) -> None:
    """Golden values of concordance_index_ipcw of scikit-survival 0.28 (GPL: not a dependency), times without ties."""
    times, events, risks = follow_up(seed, ties=False)
    assert concordance_ipcw(times, events, risks) == pytest.approx(expected, rel=1e-12)


def test_uno_concordance_without_censoring_is_harrells() -> None:
    times, _, risks = follow_up(1)
    everybody = np.ones(len(times), dtype=bool)
    assert concordance_ipcw(times, everybody, risks) == pytest.approx(concordance(times, everybody, risks))
    assert concordance_ipcw(times, ~everybody, risks) is None


def test_the_distribution_of_censoring_is_scipys() -> None:
    times, events, _ = follow_up(2)
    times = times + np.where(events, 0.0, 0.5)  # no event and censored case at one time: no rule for ties is needed
    staying = ecdf(CensoredData.right_censored(times, events)).sf
    weights = censoring_weights(times, events, np.ones((1, len(times))))[0]
    np.testing.assert_allclose(weights, np.where(events, staying.evaluate(times) ** -2.0, 0.0))


def test_harrells_c_drifts_with_censoring_and_unos_does_not() -> None:
    """Heavy censoring of late times keeps the early pairs, which this risk orders better; Uno's C stays."""
    rng = np.random.default_rng(0)
    death, leaving = rng.exponential(1, 1500), rng.exponential(0.7, 1500)
    risks = np.where(death < 0.5, -death, rng.normal(size=1500) - 2)
    truth = concordance(death, np.ones(1500, dtype=bool), risks)
    times, events = np.minimum(death, leaving), death <= leaving
    harrell, uno = concordance(times, events, risks), concordance_ipcw(times, events, risks)
    assert truth is not None
    assert harrell is not None
    assert uno is not None
    assert harrell - truth > 0.06
    assert abs(uno - truth) < 0.03


def test_resampled_uno_concordance_is_that_of_the_cases_drawn() -> None:
    times, events, _ = follow_up(3)
    rng = np.random.default_rng(3)
    said = SurvivalPredictions(np.arange(40).astype(np.str_), times, events, rng.normal(size=(40, 4)))
    drawn = rng.multinomial(40, np.full(40, 1 / 40), size=10).astype(np.float64)
    drawn[9] = 0
    values = resampled_c_index_ipcw(said, drawn)
    for value, counts in zip(values[:9], drawn[:9].astype(np.int64), strict=True):
        rows = np.repeat(np.arange(40), counts)
        assert value == pytest.approx(concordance_ipcw(times[rows], events[rows], said.risks[rows]))
    assert np.isnan(values[9])
