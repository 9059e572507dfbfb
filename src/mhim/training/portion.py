"""What one optimisation step sees: how many bags, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mhim.kernels import to_device
from mhim.models import MILModel
from mhim.training.data import LabelledBag


@dataclass(frozen=True)
class Portion:
    """Defaults: one whole bag, as published.

    Attributes:
        bags: bags of a step; the mean of their losses is minimised.
        instances_max: of a larger bag so many instances are drawn.
        instance_dropout: share of a bag's instances that a step leaves out.
    """

    bags: int = 1
    instances_max: int | None = None
    instance_dropout: float = 0.0

    def kept(self, count: int) -> int:
        """How many of ``count`` instances a step sees: all but floor(count instance_dropout), at least 1."""
        left = max(1, count - int(count * self.instance_dropout))
        return left if self.instances_max is None else min(left, self.instances_max)

    def rows(self, count: int, generator: torch.Generator) -> Int[Tensor, " kept"] | None:
        """Which instances a step sees, drawn without replacement, ascending; None for all, which draws nothing.

        Args:
            count: instances of the bag, at least 1.
            generator: on the CPU.
        """
        kept = self.kept(count)
        return None if kept == count else torch.randperm(count, generator=generator)[:kept].sort().values


@dataclass(frozen=True)
class DrawnBag:
    """A bag as a step sees it.

    Attributes:
        bag: the whole.
        features: (K, D) on the model's device, as stored.
        label: on the model's device.
        order: (K,) int64 the bag's instances in the order of ``features``, on the device; None for the bag as it is.
    """

    bag: LabelledBag
    features: Float[Tensor, "kept in_dim"]
    label: Int[Tensor, "*target"]
    order: Int[Tensor, " kept"] | None


def draw(bag: LabelledBag, portion: Portion, model: MILModel, generator: torch.Generator) -> DrawnBag:
    """Draw the instances that a step sees, then their order where the model's published training shuffles.

    Raises:
        FeatureError: features that do not fit the model.
    """
    rows = portion.rows(len(bag.features), generator) if len(bag.features) else None
    features = model.check(bag.features if rows is None else bag.features.index_select(0, rows))
    order = rows
    if model.shuffles_in_training:
        shuffle = torch.randperm(len(features), generator=generator)
        features = features.index_select(0, to_device(shuffle, features.device))
        order = shuffle if rows is None else rows[shuffle]
    device = features.device
    return DrawnBag(bag, features, to_device(bag.label, device), None if order is None else to_device(order, device))
