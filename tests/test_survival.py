"""Survival: bins and likelihood equal the reference numbers; concordance by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mhim.errors import CohortError
from mhim.survival import assign_bins, concordance, hazard_loss, risk, survival_curve, time_bins


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
