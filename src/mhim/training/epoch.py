"""One pass over the training bags, and its means."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mhim.errors import FeatureError
from mhim.methods import Step, StepResult
from mhim.training.data import BagSet
from mhim.training.monitor import MiningMonitor
from mhim.training.portion import DrawnBag, Portion, draw
from mhim.training.step import BagStep
from mhim.training.tasks import CLASSIFY, Task


@dataclass
class Tally:
    """Sums over the bags of an epoch, on the device: it is asked once, at the end."""

    losses: list[Tensor] = field(default_factory=list)
    terms: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        """One bag."""
        self.losses.append(result.loss.detach())
        for name, value in result.terms.items():
            seen = self.terms.get(name)
            self.terms[name] = value.detach() if seen is None else seen + value.detach()
        for name, value in result.watched.items():
            self.watched[name] = self.watched.get(name, 0.0) + value

    def read(self) -> tuple[list[float], dict[str, float]]:
        """Loss of every bag, and the mean of each term; waits for the device."""
        means = torch.stack(list(self.terms.values())) / len(self.losses)
        return torch.stack(self.losses).tolist(), dict(zip(self.terms, means.tolist(), strict=True))


def train_epoch(
    stepping: BagStep,
    train: BagSet,
    epoch: int,
    epochs: int,
    generator: torch.Generator,
    monitor: MiningMonitor | None = None,
    task: Task = CLASSIFY,
    portion: Portion | None = None,
) -> tuple[dict[str, float], dict[str, float | None]]:
    """One pass over the bags in random order; loss terms and watched values, means over bags.

    The generator draws the order of the bags, and for each step what it sees of its bags, then the method's masks,
    bag by bag. The last step of an epoch may have fewer bags than the others.

    Raises:
        FeatureError: a loss that is not finite; names the first slide that gave one.
    """
    model, portion, tally = stepping.method.train().model, portion or Portion(), Tally()
    order = torch.randperm(len(train), generator=generator).tolist()
    groups = [order[start : start + portion.bags] for start in range(0, len(order), portion.bags)]
    bags = train.in_order(order)
    for position, group in enumerate(groups):
        step = Step(epoch * len(groups) + position, epochs * len(groups), generator)
        _take(stepping, [draw(next(bags), portion, model, generator) for _ in group], step, tally, monitor, task)
    losses, means = tally.read()
    if not np.isfinite(losses).all():
        name = train.names[order[int(np.isfinite(losses).argmin())]]
        raise FeatureError(f"{task.unit} {name}: the training loss is not finite in epoch {epoch}; lower train.lr")
    seen = {} if monitor is None else monitor.finish_epoch()
    return means, {name: value / len(train) for name, value in tally.watched.items()} | seen


def _take(
    stepping: BagStep, drawn: list[DrawnBag], step: Step, tally: Tally, monitor: MiningMonitor | None, task: Task
) -> None:
    """One step, counted and watched; nothing of it is kept."""
    results = stepping.take([each.features for each in drawn], [each.label for each in drawn], step)
    for each, result in zip(drawn, results, strict=True):
        tally.add(result)
        if monitor is not None and result.mining is not None:
            label, size = task.watched_label(each.label), len(each.bag.features)
            monitor.observe(each.bag.slide_id, label, result.mining, each.order, size)
