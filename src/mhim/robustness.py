"""How runs hold when their test slides are disturbed: without the most attended instances, and under noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor

from mhim.cohort import read_cohort
from mhim.config import Settings, fingerprint
from mhim.errors import ArtefactError, ConfigError
from mhim.evaluation import Estimate, Summary, draws_of, format_estimate, mean_over_folds, summarise
from mhim.masks.salience import ceil_share
from mhim.metrics import Predictions, predict_classes
from mhim.models import MILModel, MILOutput
from mhim.resampling import percentile_interval, resampled_mean
from mhim.training.data import BagSet, BagStore, feature_statistics
from mhim.training.runs import Run

SAME_PROBABILITY = 2e-3


class RobustnessConfig(Settings):
    """How the test slides are disturbed."""

    remove: tuple[float, ...] = Field((0.01, 0.05, 0.1, 0.2), description="shares of most attended instances to remove")
    noise: tuple[float, ...] = Field((0.25, 0.5, 1.0), description="noise on features, in standard deviations")
    seed: int = Field(0, ge=0, description="seed of the noise")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples")
    features: Path | None = Field(None, description="folder of bag files; the run's own if not given")
    device: str = Field("cpu", description="cpu, cuda, mps")

    @field_validator("remove", "noise")
    @classmethod
    def _in_range(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not value > 0 for value in values) or len(set(values)) < len(values):
            raise ValueError("expected different numbers above 0")
        return values

    @field_validator("remove")
    @classmethod
    def _leaves_some(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(value >= 1 for value in values):
            raise ValueError("a share of 1 or more leaves nothing")
        return values

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The undisturbed slides, then every disturbance."""
        removals = [Condition(remove=share) for share in self.remove]
        return (Condition(), *removals, *(Condition(noise=level) for level in self.noise))


@dataclass(frozen=True)
class Condition:
    """One disturbance of every test slide."""

    remove: float = 0.0
    noise: float = 0.0

    @property
    def name(self) -> str:
        """In words."""
        if self.remove:
            return f"without the top {100 * self.remove:g} %"
        return f"noise of {self.noise:g} SD" if self.noise else "undisturbed"


def attended(output: MILOutput) -> Tensor:
    """(N,) how much a model attends to each instance, as a rank: by its attention, mean over rows.

    Where it has none, or attends equally (mean pooling to all, max pooling to all but the winners), by the score
    that MHIM v1 ranks.
    """
    if output.attention is None or output.mask_scores is None:
        return output.salience.mean(dim=0)
    order = output.mask_scores.mean(dim=0).argsort(descending=True, stable=True)
    order = order[output.attention.mean(dim=0)[order].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device).flip(0))


def without_most_attended(features: Tensor, attention: Tensor, share: float) -> Tensor:
    """The bag without its ceil(N share) most attended instances, in its order; at least one stays.

    Args:
        features: (N, D).
        attention: (N,); among equal values the earlier instance is removed first.
        share: in (0, 1).
    """
    count = min(ceil_share(len(features), share), len(features) - 1)
    keep = torch.ones(len(features), dtype=torch.bool, device=features.device)
    keep[attention.argsort(descending=True, stable=True)[:count]] = False
    return features[keep]


def with_noise(features: Tensor, scale: Tensor, level: float, slide_id: str, seed: int) -> Tensor:
    """(N, D) features + level x scale x standard normal numbers, the same ones for a slide in every run and level."""
    generator = torch.Generator().manual_seed(int(fingerprint([seed, slide_id]), 16) % (1 << 62))
    noise = torch.randn(features.shape, generator=generator)
    return features.float() + level * scale * noise.to(features.device)


@torch.inference_mode()
def disturbed_probabilities(
    model: MILModel, bags: BagSet, conditions: Sequence[Condition], seed: int
) -> dict[Condition, np.ndarray]:
    """Condition -> (M, C) probabilities of some slides; the attention that removes is the model's own."""
    device = next(model.parameters()).device
    scale = feature_statistics(bags)[1].to(device)
    found: dict[Condition, list[np.ndarray]] = {condition: [] for condition in conditions}
    for bag in bags:
        features = bag.features.to(device)
        intact = model(features)
        for condition in conditions:
            output = intact
            if condition.remove:
                output = model(without_most_attended(features, attended(intact), condition.remove))
            elif condition.noise:
                output = model(with_noise(features, scale, condition.noise, bag.slide_id, seed))
            found[condition].append(output.probabilities.double().cpu().numpy())
    return {condition: np.stack(values) for condition, values in found.items()}


def disturb_run(run: Run, config: RobustnessConfig) -> dict[Condition, list[Predictions]]:
    """Condition -> predictions of the test slides, one entry per fold, each by the fold that tested it.

    Raises:
        ArtefactError: undisturbed, the bags do not give what the run predicted: they are others.
        FeatureError, CohortError: data that is gone.
    """
    store = BagStore(config.features or run.config.features, read_cohort(run.config.cohort))
    rows = {row.slide_id: row for row in store.cohort}
    folds: dict[Condition, list[Predictions]] = {condition: [] for condition in config.conditions}
    for fold, table in run.test_predictions().groupby("fold", sort=True):
        missing = [slide_id for slide_id in table["slide_id"] if slide_id not in rows]
        if missing:
            raise ArtefactError(f"{run.path}: tested slide {missing[0]}, which {run.config.cohort} no longer lists")
        bags = BagSet(store, tuple(rows[slide_id] for slide_id in table["slide_id"]))
        probabilities = disturbed_probabilities(
            run.model(int(str(fold)), config.device), bags, config.conditions, config.seed
        )
        before = table[[f"prob_{name}" for name in run.classes]].to_numpy(dtype=np.float64)
        if np.abs(probabilities[Condition()] - before).max() > SAME_PROBABILITY:
            raise ArtefactError(f"{run.path}: these bags do not give the run's predictions; were they encoded again?")
        cut = float(table["threshold"].to_numpy(dtype=np.float64)[0])
        threshold = None if np.isnan(cut) else cut
        truth = np.array([run.classes.index(name) for name in table["y_true"]], dtype=np.int64)
        for condition, values in probabilities.items():
            said = predict_classes(values, threshold)
            folds[condition].append(Predictions(table["case_id"].to_numpy(dtype=np.str_), truth, said, values))
    return folds


@dataclass(frozen=True)
class Held:
    """How one configuration did under one condition.

    Attributes:
        auroc: mean over the folds of all its runs.
        loss: change of the AUROC against its own undisturbed slides, on the same draws.
        difference: AUROC minus that of the first configuration under the same condition, on the same draws.
        positive: mean probability of the positive class over positive slides; with more than two classes the mean
            probability of the true class over all slides.
    """

    title: str
    condition: Condition
    auroc: Estimate
    loss: Estimate | None
    difference: Estimate | None
    positive: float


def robustness(runs: Sequence[Run], config: RobustnessConfig) -> list[Held]:
    """Every configuration (seeds together) under every condition; the first is what others are compared with.

    Raises:
        CohortError: runs that tested other slides.
        ArtefactError: bags that are not those of the runs.
    """
    if not runs:
        raise ConfigError("robustness: give at least one run folder")
    for run in runs:
        run.require_classes("robustness")
    groups = summarise(runs, 100)
    disturbed = {run.path: disturb_run(run, config) for run in runs}
    return [held for group in groups for held in _held(group, groups[0], disturbed, config)]


def _held(
    group: Summary,
    first: Summary,
    disturbed: Mapping[Path, Mapping[Condition, list[Predictions]]],
    config: RobustnessConfig,
) -> Iterator[Held]:
    def folds_of(summary: Summary, condition: Condition) -> list[Predictions]:
        return [fold for path in summary.runs for fold in disturbed[path][condition]]

    draws = draws_of(folds_of(first, Condition()), config.resamples)

    def compared(folds: list[Predictions], others: list[Predictions]) -> Estimate | None:
        value, other = (mean_over_folds(each, "auroc") for each in (folds, others))
        if value is None or other is None:
            return None
        change = resampled_mean(folds, "auroc", draws) - resampled_mean(others, "auroc", draws)
        return Estimate(value - other, percentile_interval(change))

    for condition in config.conditions:
        folds = folds_of(group, condition)
        area = Estimate(mean_over_folds(folds, "auroc"), percentile_interval(resampled_mean(folds, "auroc", draws)))
        loss = compared(folds, folds_of(group, Condition())) if condition != Condition() else None
        difference = compared(folds, folds_of(first, condition)) if group is not first else None
        yield Held(group.title, condition, area, loss, difference, _positive(folds))


def _positive(folds: Sequence[Predictions]) -> float:
    own = np.concatenate([fold.probabilities[np.arange(len(fold)), fold.y_true] for fold in folds])
    truth = np.concatenate([fold.y_true for fold in folds])
    chosen = truth == 1 if folds[0].n_classes == 2 else np.ones(len(truth), dtype=bool)
    return float(own[chosen].mean())


def csv_table(results: Sequence[Held]) -> pd.DataFrame:
    """One line per configuration and condition."""

    def columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
        low, high = (estimate and estimate.interval) or (None, None)
        return {name: estimate and estimate.value, f"{name}_low": low, f"{name}_high": high}

    return pd.DataFrame(
        {
            "model": held.title,
            "condition": held.condition.name,
            "removed_share": held.condition.remove,
            "noise_sd": held.condition.noise,
            **columns("auroc", held.auroc),
            **columns("change", held.loss),
            **columns("difference", held.difference),
            "mean_positive_probability": held.positive,
        }
        for held in results
    )


def text_table(results: Sequence[Held]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text."""
    header = ["condition", "model", "AUROC [95 % CI]", "change", "difference to the first", "mean p of positive slides"]
    order = {held.condition: None for held in results}
    rows = [
        [
            condition.name,
            held.title,
            format_estimate(held.auroc),
            format_estimate(held.loss, sign=True),
            format_estimate(held.difference, sign=True),
            f"{held.positive:.3f}",
        ]
        for condition in order
        for held in results
        if held.condition == condition
    ]
    return header, rows
