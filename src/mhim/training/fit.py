"""The only training loop: optimiser, schedule, early stopping on validation. It never sees test data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mhim.config import Settings
from mhim.errors import FeatureError
from mhim.kernels import to_device
from mhim.methods import Method
from mhim.models import MILModel
from mhim.training.data import CACHE_BYTES, BagSet
from mhim.training.epoch import train_epoch
from mhim.training.monitor import MiningMonitor
from mhim.training.portion import Portion
from mhim.training.snapshots import TeacherKeeper
from mhim.training.step import BagStep, Precision, adam
from mhim.training.tasks import CLASSIFY, Task


class TrainConfig(Settings):
    """The optimisation; defaults follow MHIM v1 (section 5.1), with a shorter schedule."""

    epochs: int = Field(100, ge=1, description="length of the schedule")
    lr: float = Field(2e-4, gt=0, description="learning rate of Adam at the start")
    weight_decay: float = Field(1e-5, ge=0, description="L2 term of Adam")
    lr_schedule: Literal["cosine", "constant"] = Field("cosine", description="per epoch, down to 0, or constant")
    patience: int = Field(20, ge=1, description="epochs without a better validation score before stopping")
    min_epochs: int = Field(20, ge=0, description="never stop before this many epochs")
    standardise: bool = Field(
        default=False, description="give every feature mean 0 and deviation 1 over the fold's training instances"
    )
    select_by: Literal["auroc", "c-index", "loss"] = Field(
        "auroc",
        description="validation score that picks the epoch; equal scores are ranked by loss. Survival: c-index "
        "(its default) or loss",
    )
    choose_from: int = Field(0, ge=0, description="first epoch that validation may choose")
    watch: bool = Field(True, description="take numbers about the mining each epoch; changes nothing else")
    keep_teachers: bool = Field(
        True, description="keep the teacher at the start, the middle, the best and the last epoch, for mhim mining"
    )
    precision: Precision = Field(
        "float32", description="of the matrix products in training: float32, or bfloat16 (faster, rounded to 3 digits)"
    )
    bags_per_step: int = Field(
        1, ge=1, description="bags of one step, which takes the mean of their losses; published: 1"
    )
    instances_max: int | None = Field(
        None, ge=1, description="of a larger bag each step sees so many instances, drawn anew; evaluation sees all"
    )
    instance_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a bag's instances that each step leaves out, drawn anew"
    )
    map_bags: bool = Field(
        True, description="use features where they lie in their files, shared by all processes; false reads them first"
    )
    cache_bytes: int = Field(
        CACHE_BYTES, ge=0, description="features that are not mapped are kept in memory up to this many bytes a process"
    )
    activation_mib: int = Field(
        32,
        ge=0,
        description="MiB that a step may keep of a bag for its gradient; more is computed again (not TransMIL)",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(None, ge=1, description="CPU threads of one fold; by default torch decides")

    @model_validator(mode="after")
    def _chooses_an_epoch(self) -> TrainConfig:
        if self.choose_from >= self.epochs:
            raise ValueError(f"choose_from {self.choose_from} leaves none of {self.epochs} epochs to choose")
        return self

    @property
    def portion(self) -> Portion:
        """What one step sees."""
        return Portion(self.bags_per_step, self.instances_max, self.instance_dropout)


@dataclass(frozen=True)
class Epoch:
    """One row of the history. ``terms`` are mean training losses, ``watched`` what method and monitor report.

    ``val_score`` is the validation value of the task's ``metric``.
    """

    epoch: int
    lr: float
    terms: dict[str, float]
    watched: dict[str, float | None]
    val_loss: float
    val_score: float | None
    metric: str = "auroc"

    def score(self, select_by: str) -> tuple[float, float]:
        """What early stopping maximises; an undefined score leaves the choice to the loss."""
        value = self.val_score if select_by != "loss" and self.val_score is not None else 0.0
        return (value, -self.val_loss)

    def row(self) -> dict[str, Any]:
        """The epoch as one flat record."""
        losses = {f"train_{name}": value for name, value in self.terms.items()}
        chosen = {"val_loss": self.val_loss, f"val_{self.metric}": self.val_score}
        return {"epoch": self.epoch, "lr": self.lr, **losses, **self.watched, **chosen}


@dataclass(frozen=True)
class FitResult:
    """The history, the best epoch, and the deployed aggregator's weights at that epoch."""

    history: tuple[Epoch, ...]
    best_epoch: int
    state: dict[str, Tensor]


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fit(
    method: Method,
    train: BagSet,
    val: BagSet,
    config: TrainConfig,
    generator: torch.Generator,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    monitor: MiningMonitor | None = None,
    task: Task = CLASSIFY,
    keeper: TeacherKeeper | None = None,
) -> FitResult:
    """Train a method and keep the weights of the best validation epoch.

    Args:
        method: holds the aggregator; moved to the device.
        train: training slides.
        val: validation slides: they choose the epoch.
        config: the optimisation.
        generator: CPU generator of bag order and masks; seeds torch's global one, of dropout, for the while.
        on_epoch: called after each epoch.
        monitor: watches what is masked.
        task: what is predicted and scored; the method's objective is taken from it.
        keeper: keeps the teacher at moments of training.

    Raises:
        FeatureError: a loss or a prediction that is not finite; names the slide.
    """
    method.to(device := choose_device(config.device))
    method.objective = task.objective
    optimiser, schedule = _optimisation(method, config)
    stepping = BagStep(method, optimiser, config.precision)
    keeper = keeper or TeacherKeeper(config.epochs, is_active=False)
    history, best, state, portion = list[Epoch](), 0, {}, config.portion
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
        for index in range(config.epochs):
            lr = optimiser.param_groups[0]["lr"]
            keeper.before_epoch(index, method)
            terms, watched = train_epoch(stepping, train, index, config.epochs, generator, monitor, task, portion)
            schedule.step()
            predictions, loss = predict(method.model, val, task)
            history.append(Epoch(index, lr, terms, watched, loss, task.score(predictions), task.metric))
            on_epoch(history[-1])
            if index <= config.choose_from or _is_better(history[-1], history[best], config):
                best = index
                state = _copied_state(method.model)
            keeper.after_epoch(index, method, best == index)
            if index - best >= config.patience and index + 1 >= config.min_epochs:
                break
    return FitResult(tuple(history), best, state)


def _is_better(epoch: Epoch, best: Epoch, config: TrainConfig) -> bool:
    return epoch.score(config.select_by) > best.score(config.select_by)


def _copied_state(model: MILModel) -> dict[str, Tensor]:
    """The model's tensors, copied to the CPU."""
    return copy.deepcopy({key: value.cpu() for key, value in model.state_dict().items()})


def _optimisation(
    method: Method, config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    method.model.activation_bytes = config.activation_mib << 20
    optimiser = adam(method, config.lr, config.weight_decay)
    horizon = config.epochs if config.lr_schedule == "cosine" else 1 << 62
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=horizon)


@torch.inference_mode()
def predict(model: MILModel, bags: BagSet, task: Task = CLASSIFY) -> tuple[Any, float]:
    """Predictions of the deployed aggregator in evaluation mode, and its mean loss.

    For classification ``y_pred`` is the most probable class here; a threshold is applied by whoever has one.

    Raises:
        FeatureError: a prediction that is not finite; names the slide.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for bag in bags:
        output = model(bag.features, instances=model.loss_reads_instances)
        terms = task.objective.losses(model, output, to_device(bag.label, device))
        loss = torch.stack([term.reshape(()) for term in terms.values()]).sum()
        found.append(torch.cat([task.objective.prediction(model, output), loss[None]]))
    table = torch.stack(found).cpu().double().numpy()
    if not np.isfinite(table).all():
        name = bags.names[int(np.isfinite(table).all(axis=1).argmin())]
        raise FeatureError(f"{task.unit} {name}: the prediction is not finite; lower train.lr")
    return task.predictions(bags, table[:, :-1]), float(table[:, -1].mean())
