"""Discrete-time survival: bins of follow-up time, hazards and their likelihood, risk, concordance.

The building blocks of a survival head (MHIM v2, section 6.5 of the notes; Zadeh and Schmid, TPAMI 2021). A case is
one bag, all its slides together; its model has one logit per bin. No verb trains with them yet.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhim.errors import CohortError

EDGE_MARGIN = 1e-6
SMALLEST = 1e-7
TIE_TOLERANCE = 1e-8

Times = NDArray[np.float64]
Events = NDArray[np.bool_]


def time_bins(times: Times, events: Events, bins: int = 4) -> Times:
    """(bins + 1,) edges at quantiles of the times of events; the outer ones lie beyond all times.

    Args:
        times: (M,) follow-up times, of events and of censored cases.
        events: (M,) whether the event was seen.
        bins: number of bins.

    Raises:
        CohortError: too few different event times for so many bins.
    """
    edges = np.quantile(times[events], np.linspace(0, 1, bins + 1)) if events.any() else np.zeros(bins + 1)
    edges[0], edges[-1] = times.min() - EDGE_MARGIN, times.max() + EDGE_MARGIN
    if (np.diff(edges) <= 0).any():
        raise CohortError(f"{int(events.sum())} events do not fill {bins} bins of time; use fewer bins")
    return edges


def assign_bins(times: Times, edges: Times) -> NDArray[np.int64]:
    """(M,) bin of each time; a bin holds its left edge. Times beyond the outer edges fall into the outer bins."""
    return np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(edges) - 2).astype(np.int64)


def survival_curve(logits: Tensor) -> Tensor:
    """(..., bins) probability to outlive each bin: product of (1 - hazard), hazard = sigmoid(logit)."""
    return torch.cumprod(1 - torch.sigmoid(logits), dim=-1)


def hazard_loss(logits: Tensor, time_bin: Tensor, is_event: Tensor, event_share: float = 0.0) -> Tensor:
    """(M,) negative log-likelihood of discrete hazards.

    An event in bin y costs -log S(y - 1) - log h(y), a censored case -log S(y), with S(-1) = 1. ``event_share``
    (alpha, published 0) blends towards the events' part alone.

    Args:
        logits: (M, bins).
        time_bin: (M,) int64.
        is_event: (M,) bool.
        event_share: in [0, 1].
    """
    hazard = torch.sigmoid(logits)
    survival = survival_curve(logits)
    before = torch.cat([torch.ones_like(survival[:, :1]), survival], dim=1)
    index = time_bin[:, None]

    def log_at(values: Tensor) -> Tensor:
        return values.gather(1, index)[:, 0].clamp(min=SMALLEST).log()

    event = -(log_at(before) + log_at(hazard)) * is_event
    censored = -log_at(survival) * ~is_event
    return (1 - event_share) * (event + censored) + event_share * event


def risk(logits: Tensor) -> Tensor:
    """(...,) minus the sum of the survival curve: larger is worse."""
    return -survival_curve(logits).sum(dim=-1)


def concordance(times: Times, events: Events, risks: Times) -> float | None:
    """Harrell's C: share of comparable pairs in which the earlier event has the larger risk.

    A pair is comparable when the earlier time is an event (at equal times: an event and a censored case). Risks
    within 1e-8 count half. None without a comparable pair.
    """
    earlier = (times[:, None] < times[None, :]) | ((times[:, None] == times[None, :]) & ~events[None, :])
    comparable = events[:, None] & earlier
    np.fill_diagonal(comparable, val=False)
    if not comparable.any():
        return None
    difference = risks[:, None] - risks[None, :]
    tied = np.abs(difference) <= TIE_TOLERANCE
    order = np.where(tied, 0.5, difference > 0)
    return float(order[comparable].mean())
