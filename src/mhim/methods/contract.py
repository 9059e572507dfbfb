"""The contract of a training method: it owns the aggregator that is deployed, and its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhim.config import ComponentConfig
from mhim.errors import ConfigError
from mhim.kernels import Bags
from mhim.masks.contract import MaskSelection
from mhim.methods.objectives import CLASSIFICATION, Classification
from mhim.models.contract import MILModel, MILOutput
from mhim.registry import Registry


@dataclass(frozen=True)
class Step:
    """Where training stands.

    Attributes:
        index: optimisation steps done so far.
        total: steps of the whole schedule.
        generator: source of randomness, on the CPU.

    Raises:
        ConfigError: a total below 1 or a step outside the schedule, so that no decay could be computed.
    """

    index: int
    total: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ConfigError(f"a schedule of {self.total} steps; decays need the total number of training steps")
        if not 0 <= self.index < self.total:
            raise ConfigError(f"step {self.index} lies outside the schedule of {self.total} steps")

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, in [0, 1)."""
        return self.index / self.total


@dataclass(frozen=True)
class Mining:
    """What a mining method saw and decided for one bag, for whoever watches; training does not read it.

    Attributes:
        selection: which instances were masked.
        salience: (head, N) the teacher's scores that the mask ranked.
        teacher: the teacher's result for the whole bag.
        shown: (K,) int64, the bag's instances that stand first in the student's sequence, in that order.
        student: the student's result; its first K instances are those of ``shown``, further ones are recycled.
        student_salience: (head, K or more) the student's own scores of the same kind, without gradient.
    """

    selection: MaskSelection
    salience: Float[Tensor, "head instances"]
    teacher: MILOutput
    shown: Int[Tensor, " shown"]
    student: MILOutput
    student_salience: Float[Tensor, "head sequence"]


@dataclass(frozen=True)
class StepResult:
    """Loss terms of one bag (their sum is minimised), and what else is worth a column in the history.

    Attributes:
        terms: named scalars, already weighted.
        watched: numbers that become columns of the history, averaged over an epoch's steps.
        mining: what was masked, for methods that mask.
    """

    terms: Mapping[str, Tensor]
    watched: Mapping[str, float] = field(default_factory=dict)
    mining: Mining | None = None

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of the terms."""
        return torch.stack([term.reshape(()) for term in self.terms.values()]).sum()


class Method(nn.Module):
    """Base of every method.

    Args:
        config: the subclass's own ``Config``.
        model: the aggregator to train; it alone is deployed.
        baseline: a plainly trained aggregator of the same fold, for methods that start from one.

    Attributes:
        objective: what is minimised; whoever builds the method for another task than classification sets it.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig, model: MILModel, baseline: MILModel | None) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.objective: Classification = CLASSIFICATION

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass that writes its own step gives up its parent's form of it for several bags."""
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__ and "step_bags" not in cls.__dict__:
            cls.step_bags = Method.step_bags

    @classmethod
    def needs_baseline(cls, config: ComponentConfig) -> bool:
        """Whether a plain baseline of the same fold must be trained first."""
        return False

    def step(
        self, features: Float[Tensor, "instances in_dim"], label: Int[Tensor, "*target"], step: Step
    ) -> StepResult:
        """Loss terms of one bag; ``label`` is a class index (), or the target of another task."""
        raise NotImplementedError

    def step_bags(self, bags: Bags, labels: Sequence[Int[Tensor, "*target"]], step: Step) -> list[StepResult]:
        """Loss terms of several bags, those of ``step`` for one after another; by default just that."""
        return [self.step(features, label, step) for features, label in zip(bags, labels, strict=True)]

    def losses(self, output: MILOutput, label: Int[Tensor, "*target"]) -> dict[str, Tensor]:
        """The objective's named loss terms for what the deployed aggregator said."""
        return self.objective.losses(self.model, output, label)

    def after_step(self, step: Step) -> None:
        """What moves after the optimiser has (an EMA teacher); nothing by default."""

    @property
    def watching(self) -> MILModel | None:
        """The second aggregator that ranks the instances (a teacher), for whoever shows it; None by default."""
        return None

    def trainable(self) -> Iterable[nn.Parameter]:
        """Parameters that the optimiser moves."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)


methods: Registry[Method] = Registry("method")
