"""MHIM v1: masked hard instance mining around any aggregator (Tang et al., ICCV 2023).

A momentum teacher sees the whole bag and scores every instance; the salient (easy) ones are masked;
the student learns from the rest under a consistency loss; the teacher follows the student. What is
deployed is the student: the plain aggregator at plain cost.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from mhim.config import ComponentConfig
from mhim.errors import CheckpointError, ConfigError
from mhim.kernels import Bags
from mhim.masks import MaskStrategy, masks
from mhim.masks.contract import MaskSelection
from mhim.methods.contract import Method, Mining, Step, StepResult, methods
from mhim.methods.losses import consistency_loss
from mhim.models.contract import MILModel, MILOutput

MaskConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(masks.parse)]
TeacherScore = Literal["model", "attention", "instance-scores", "class-probability"]
Student = tuple[MaskSelection, MILOutput, Tensor]


class MHIMConfig(ComponentConfig):
    """Options of MHIM v1; the defaults are the published ones for AB-MIL on CAMELYON16."""

    mask: MaskConfig = Field(default_factory=lambda: masks.parse("r-ham"), description="mask strategy")
    teacher_score: TeacherScore = Field(
        "model",
        description="what the mask ranks: the aggregator's published v1 score (attention; DSMIL: instance scores), "
        "the attention, the largest instance score, or the class-aware instance probability of v2",
    )
    consistency_weight: float = Field(0.1, ge=0, description="weight of the consistency loss (alpha)")
    teacher_temperature: float = Field(0.1, gt=0, description="temperature of the teacher's bag embedding")
    student_temperature: float = Field(1.0, gt=0, description="temperature of the student's bag embedding")
    momentum: float = Field(
        0.9999, ge=0, le=1, description="EMA momentum of the teacher; 0 copies the student, 1 never updates"
    )
    momentum_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant, or half a cosine from momentum to 1 over training"
    )
    teacher_mode: Literal["eval", "train"] = Field(
        "eval", description="eval as in the paper; train (dropout on) as in the published program"
    )
    teacher_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the teacher's matrix products; it only ranks and gives a soft target, so bfloat16 (faster) "
        "leaves the student's mathematics as it is",
    )
    teacher_init: Literal["baseline", "student"] = Field(
        "baseline", description="start from the fold's plain baseline, or from the student's own start"
    )
    student_init: Literal["projection", "none", "all"] = Field(
        "projection", description="what the student copies from the fold's plain baseline"
    )


@methods.register("mhim-v1")
class MHIM(Method):
    """Teacher, mask, student, consistency, momentum.

    The mask is applied before the student projects its instances: tokens depend on their own row
    alone, so the mathematics is that of masking tokens, at the cost of the kept instances only.
    """

    Config = MHIMConfig
    config: MHIMConfig

    def __init__(self, config: MHIMConfig, model: MILModel, baseline: MILModel | None) -> None:
        super().__init__(config, model, baseline)
        if self.needs_baseline(config):
            if baseline is None:
                raise ConfigError("mhim-v1 starts from a plain baseline of the same fold; none was given")
            require_same_architecture(model, baseline)
            if config.student_init != "none":
                copy_start(model, baseline, config.student_init)
        start = baseline if config.teacher_init == "baseline" and baseline is not None else model
        self.teacher = copy.deepcopy(start).requires_grad_(False)
        self.teacher.is_teacher = True
        self.strategy: MaskStrategy = masks.build(config.mask)
        self.train()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass with a student of its own shows it several bags one at a time."""
        super().__init_subclass__(**kwargs)
        if "student" in cls.__dict__ and "students" not in cls.__dict__:
            cls.students = cls.students_in_turn

    @classmethod
    def needs_baseline(cls, config: ComponentConfig) -> bool:
        """Unless both teacher and student start by themselves."""
        assert isinstance(config, MHIMConfig)
        return config.teacher_init == "baseline" or config.student_init != "none"

    @property
    def watching(self) -> MILModel:
        """The teacher."""
        return self.teacher

    def train(self, mode: bool = True) -> MHIM:
        """Student in training mode; the teacher as ``teacher_mode`` says."""
        super().train(mode)
        self.teacher.train(mode and self.config.teacher_mode == "train")
        return self

    def step(
        self, features: Float[Tensor, "instances in_dim"], label: Int[Tensor, "*target"], step: Step
    ) -> StepResult:
        """Teacher on the whole bag, mask, student on the kept instances, both loss terms."""
        with self._teaching(features.device.type):
            seen = self.teacher(features)
        salience = teacher_salience(seen, self.config.teacher_score)
        selection = self.strategy.select(salience, step.progress, step.generator)
        return self._result(label, seen, salience, selection, *self.student(features, selection, step))

    def step_bags(self, bags: Bags, labels: Sequence[Int[Tensor, "*target"]], step: Step) -> list[StepResult]:
        """See :meth:`Method.step_bags`: the teacher once on all bags, a mask each, the student once on what is kept.

        Masks are drawn bag after bag, as one bag at a time draws them.
        """
        with self._teaching(bags[0].device.type):
            seen = self.teacher.forward_bags(bags)
        saliences = [teacher_salience(each, self.config.teacher_score) for each in seen]
        students = self.students(bags, saliences, step)
        parts = zip(labels, seen, saliences, students, strict=True)
        return [self._result(label, one, salience, *student) for label, one, salience, student in parts]

    @contextmanager
    def _teaching(self, device: str) -> Iterator[None]:
        """The teacher's precision, without gradients."""
        is_low = self.config.teacher_precision == "bfloat16"
        with (
            torch.no_grad(),
            torch.autocast(device, torch.bfloat16, enabled=is_low or torch.is_autocast_enabled(device)),
        ):
            yield

    def _result(
        self,
        label: Int[Tensor, "*target"],
        seen: MILOutput,
        salience: Float[Tensor, "head instances"],
        selection: MaskSelection,
        output: MILOutput,
        shown: Int[Tensor, " shown"],
    ) -> StepResult:
        """Both loss terms of a bag, and what was mined."""
        terms = self.losses(output, label)
        if self.config.consistency_weight > 0:
            distance = consistency_loss(
                seen.bag_embedding,
                output.bag_embedding,
                self.config.teacher_temperature,
                self.config.student_temperature,
            )
            terms["consistency"] = self.config.consistency_weight * distance
        own = teacher_salience(output, self.config.teacher_score).detach()
        mining = Mining(selection, salience, seen, shown, output, own)
        return StepResult(terms, {"kept_share": selection.kept_share}, mining)

    def student(
        self, features: Float[Tensor, "instances in_dim"], selection: MaskSelection, step: Step
    ) -> tuple[MILOutput, Int[Tensor, " shown"]]:
        """The student's result, and which instances of the bag stand first in what it saw."""
        return self.model(features, selection.keep_index), selection.keep_index

    def students(self, bags: Bags, saliences: Sequence[Float[Tensor, "head _"]], step: Step) -> list[Student]:
        """Selection of each bag, and what ``student`` says of it: one pass over what is kept of all bags."""
        selections = [self.strategy.select(salience, step.progress, step.generator) for salience in saliences]
        shown = [selection.keep_index for selection in selections]
        return list(zip(selections, self.model.forward_bags(bags, shown), shown, strict=True))

    def students_in_turn(self, bags: Bags, saliences: Sequence[Float[Tensor, "head _"]], step: Step) -> list[Student]:
        """One bag at a time."""
        found = list[Student]()
        for features, salience in zip(bags, saliences, strict=True):
            selection = self.strategy.select(salience, step.progress, step.generator)
            found.append((selection, *self.student(features, selection, step)))
        return found

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, over all parameters (section 4.5)."""
        momentum = momentum_at(self.config.momentum, self.config.momentum_schedule, step.progress)
        follow(list(self.teacher.parameters()), list(self.model.parameters()), momentum)


def teacher_salience(seen: MILOutput, score: TeacherScore) -> Float[Tensor, "head instances"]:
    """The scores (head, N) that the mask ranks.

    ``attention`` keeps the heads of a bag with one embedding, which the mask then fuses; where attention rows
    belong to classes (one bag embedding each: DSMIL, CLAM-MB), it is their maximum.

    Raises:
        ConfigError: the aggregator has no such score.
    """
    if score == "model":
        return seen.salience
    if score == "class-probability":
        return seen.class_salience
    values = seen.attention if score == "attention" else seen.instance_scores
    if values is None:
        raise ConfigError(f"method.teacher_score is {score}, which this aggregator does not have")
    if score == "instance-scores":
        return values.amax(dim=-1)[None]
    return values.amax(dim=0)[None] if seen.bag_embedding.ndim > 1 else values


def follow(old: list[nn.Parameter], new: list[nn.Parameter], momentum: float) -> None:
    """``old`` becomes momentum old + (1 - momentum) new, in one pass where PyTorch has a fused one."""
    if len(old) != len(new):
        raise ConfigError(f"{len(old)} parameters cannot follow {len(new)}")
    fused = getattr(torch, "_foreach_lerp_", None)
    if fused is not None:
        fused(old, new, 1 - momentum)
        return
    for one, other in zip(old, new, strict=True):
        one.lerp_(other, 1 - momentum)


def momentum_at(momentum: float, schedule: str, progress: float) -> float:
    """EMA momentum at a share of training: constant, or 1 - (1 - m)/2 (1 + cos(pi progress))."""
    if schedule == "constant":
        return momentum
    return 1 - 0.5 * (1 - momentum) * (1 + math.cos(math.pi * progress))


def require_same_architecture(model: nn.Module, baseline: nn.Module) -> None:
    """Refuse a baseline whose tensors do not match the model's.

    Raises:
        CheckpointError: names the first difference.
    """
    ours, theirs = model.state_dict(), baseline.state_dict()
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise CheckpointError(f"the baseline is another architecture: tensor '{name}' differs from the model's")


def copy_start(model: MILModel, baseline: MILModel, what: Literal["projection", "all"]) -> None:
    """Copy the baseline's projection layers, or all of it, into the student (section 4.6)."""
    state = baseline.state_dict()
    if what == "projection":
        state = {name: value for name, value in state.items() if name.split(".")[0] == "projection"}
        if not state:
            raise ConfigError(f"{type(model).__name__} has no 'projection' layers to copy; set method.student_init")
    model.load_state_dict(state, strict=what == "all")
