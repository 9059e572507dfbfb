"""Discrete-time survival: bins of follow-up time, hazards and their likelihood, risk, concordance.

A survival head (MHIM v2, section 6.5 of the notes; Zadeh and Schmid, TPAMI 2021): a case is one bag, all its slides
together; its model has one logit per bin.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    if events.sum() < bins or (np.diff(edges) <= 0).any():
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
    comparable, order = _pairs(times, events, risks)
    return float(order[comparable].mean()) if comparable.any() else None


def _pairs(times: Times, events: Events, risks: Times) -> tuple[Events, Times]:
    """(M, M) which pairs (row earlier) are comparable, and 1, 0.5 or 0 for right, tied or wrong order of risk."""
    earlier = (times[:, None] < times[None, :]) | ((times[:, None] == times[None, :]) & ~events[None, :])
    comparable = events[:, None] & earlier
    np.fill_diagonal(comparable, val=False)
    difference = risks[:, None] - risks[None, :]
    return comparable, np.where(np.abs(difference) <= TIE_TOLERANCE, 0.5, difference > 0)


def censoring_weights(times: Times, events: Events, drawn: Times) -> Times:
    """(B, M) 1 / G(t-)^2 of cases with an event, 0 of the others; G: Kaplan-Meier estimate of staying uncensored.

    At equal times events come before censored cases, which are then no longer at risk of being censored.

    Args:
        times: (M,) follow-up.
        events: (M,) whether the event was seen.
        drawn: (B, M) how often each case counts; the estimate is of each row by itself.
    """
    moments, place = np.unique(2 * np.unique(times, return_inverse=True)[1] + ~events, return_inverse=True)
    counted = np.zeros((len(drawn), len(moments)))
    np.add.at(counted.T, place, drawn.T)
    at_risk = np.cumsum(counted[:, ::-1], axis=1)[:, ::-1]
    censored = np.where(moments % 2 == 1, counted, 0.0)
    staying = np.cumprod(1 - np.divide(censored, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0), axis=1)
    earlier = staying[:, np.maximum(place - 1, 0)]  # an event leaves the estimate as it is: no step at its own moment
    kept = np.where(place == 0, 1.0, earlier)
    return np.divide(1.0, kept**2, out=np.zeros_like(kept), where=events & (drawn > 0) & (kept > 0))


def concordance_ipcw(times: Times, events: Events, risks: Times) -> float | None:
    """Uno's C: Harrell's, with each pair weighted by the inverse probability that its earlier case was not censored.

    Harrell's C depends on how many cases are censored and when; this does not, where censoring is independent of
    risk. The distribution of censoring is estimated from the cases scored; no time is cut off. Pairs and ties as in
    :func:`concordance`. Source: Uno et al., Statistics in Medicine 2011.
    """
    comparable, order = _pairs(times, events, risks)
    if not comparable.any():
        return None
    weights = comparable * censoring_weights(times, events, np.ones((1, len(times))))[0][:, None]
    return float((weights * order).sum() / weights.sum())


@dataclass(frozen=True)
class SurvivalPredictions:
    """Predictions for M cases.

    Attributes:
        case_id: (M,) names.
        times: (M,) follow-up times.
        events: (M,) whether the event was seen.
        logits: (M, bins) float64, of the hazards.
    """

    case_id: NDArray[np.str_]
    times: Times
    events: Events
    logits: Times

    def __len__(self) -> int:
        return len(self.times)

    @property
    def hazards(self) -> Times:
        """(M, bins) probability of the event in each bin, given survival until then."""
        return torch.sigmoid(torch.from_numpy(self.logits)).numpy()

    @property
    def risks(self) -> Times:
        """(M,) see :func:`risk`."""
        return risk(torch.from_numpy(self.logits)).numpy()


def c_index(predictions: SurvivalPredictions) -> float | None:
    """See :func:`concordance`."""
    return concordance(predictions.times, predictions.events, predictions.risks)


def c_index_ipcw(predictions: SurvivalPredictions) -> float | None:
    """See :func:`concordance_ipcw`."""
    return concordance_ipcw(predictions.times, predictions.events, predictions.risks)


def resampled_c_index(predictions: SurvivalPredictions, weights: Times) -> Times:
    """(B,) C where each case counts as often as (B, M) ``weights`` say; NaN without a comparable pair.

    A case drawn twice is not compared with itself: its copies have equal times.
    """
    return _resampled(predictions, weights, np.ones(len(predictions)))


def resampled_c_index_ipcw(predictions: SurvivalPredictions, weights: Times) -> Times:
    """(B,) Uno's C; each resample has its own distribution of censoring."""
    return _resampled(predictions, weights, censoring_weights(predictions.times, predictions.events, weights))


def _resampled(predictions: SurvivalPredictions, weights: Times, earlier: Times) -> Times:
    """(B,) C with (M,) or (B, M) weights of the earlier case of each pair."""
    comparable, order = _pairs(predictions.times, predictions.events, predictions.risks)
    first = weights * earlier
    right = ((first @ (order * comparable)) * weights).sum(axis=1)
    total = ((first @ comparable.astype(np.float64)) * weights).sum(axis=1)
    return np.divide(right, total, out=np.full_like(total, np.nan), where=total > 0)


SURVIVAL_METRICS = {"c_index": c_index, "c_index_ipcw": c_index_ipcw}


@dataclass(frozen=True)
class SurvivalSteps:
    """A Kaplan-Meier estimate as steps: times, survival after each, and its 95 % limits (Greenwood, log-log)."""

    times: Times
    survival: Times
    low: Times
    high: Times


def kaplan_meier(times: Times, events: Events) -> SurvivalSteps:
    """Product-limit estimate of the survival of M cases, by SciPy; it starts with 1 at time 0.

    Limits are NaN where the formula has none (survival 0 or 1).
    """
    import warnings

    from scipy.stats import CensoredData, ecdf

    found = ecdf(CensoredData.right_censored(times, ~events)).sf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        limits = found.confidence_interval(method="log-log")
    columns = (found.quantiles, found.probabilities, limits.low.probabilities, limits.high.probabilities)
    starts = (0.0, 1.0, 1.0, 1.0)
    return SurvivalSteps(*(np.concatenate([[at], column]) for at, column in zip(starts, columns, strict=True)))


def log_rank(first: SurvivalPredictions, second: SurvivalPredictions) -> float | None:
    """Two-sided p-value of the log-rank test between two groups, by SciPy; None without an event or a case."""
    from scipy.stats import CensoredData, logrank

    if not len(first) or not len(second) or not (first.events.any() or second.events.any()):
        return None
    one, other = (CensoredData.right_censored(each.times, ~each.events) for each in (first, second))
    value = float(logrank(one, other).pvalue)
    return value if np.isfinite(value) else None
