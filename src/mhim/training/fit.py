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
from mhim.methods import Method, Step
from mhim.models import MILModel
from mhim.training.data import BagSet
from mhim.training.monitor import MiningMonitor
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
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(None, ge=1, description="CPU threads of one fold; by default torch decides")

    @model_validator(mode="after")
    def _chooses_an_epoch(self) -> TrainConfig:
        if self.choose_from >= self.epochs:
            raise ValueError(f"choose_from {self.choose_from} leaves none of {self.epochs} epochs to choose")
        return self


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
    """Train a method, one bag a step, and keep the weights of the best validation epoch.

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
    history, best, state = list[Epoch](), 0, {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
        for index in range(config.epochs):
            lr = optimiser.param_groups[0]["lr"]
            keeper.before_epoch(index, method)
            terms, watched = train_epoch(stepping, train, index, config.epochs, generator, monitor, task)
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
    optimiser = adam(method, config.lr, config.weight_decay)
    horizon = config.epochs if config.lr_schedule == "cosine" else 1 << 62
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=horizon)


def train_epoch(
    stepping: BagStep,
    train: BagSet,
    epoch: int,
    epochs: int,
    generator: torch.Generator,
    monitor: MiningMonitor | None = None,
    task: Task = CLASSIFY,
) -> tuple[dict[str, float], dict[str, float | None]]:
    """One pass over the bags in random order; mean loss terms and mean watched values.

    Raises:
        FeatureError: a loss that is not finite; names the first slide that gave one.
    """
    method = stepping.method.train()
    device = next(method.model.parameters()).device
    terms: dict[str, Tensor] = {}
    watched: dict[str, float] = {}
    losses: list[Tensor] = []
    order = torch.randperm(len(train), generator=generator).tolist()
    for position, index in enumerate(order):
        bag = train[index]
        step = Step(epoch * len(train) + position, epochs * len(train), generator)
        features, label, shuffle = method.model.check(bag.features), bag.label.to(device), None
        if method.model.shuffles_in_training:
            shuffle = torch.randperm(len(features), generator=generator).to(device)
            features = features.index_select(0, shuffle)
        result = stepping.loss(features, label, step)
        if monitor is not None and result.mining is not None:
            monitor.observe(bag.slide_id, task.watched_label(label), result.mining, shuffle)
        loss = result.loss
        losses.append(loss.detach())
        stepping.update(loss, step)
        for name, value in result.terms.items():
            terms[name] = terms.get(name, torch.zeros((), device=device)) + value.detach()
        for name, value in result.watched.items():
            watched[name] = watched.get(name, 0.0) + value
    finite = torch.isfinite(torch.stack(losses)).tolist()
    if not all(finite):
        name = train.names[order[finite.index(False)]]
        raise FeatureError(f"{task.unit} {name}: the training loss is not finite in epoch {epoch}; lower train.lr")
    means = {name: float(value) / len(train) for name, value in terms.items()}
    seen = {} if monitor is None else monitor.finish_epoch()
    return means, {name: value / len(train) for name, value in watched.items()} | seen


@torch.inference_mode()
def predict(model: MILModel, bags: BagSet, task: Task = CLASSIFY) -> tuple[Any, float]:
    """Predictions of the deployed aggregator in evaluation mode, and its mean loss.

    For classification ``y_pred`` is the most probable class here; a threshold is applied by whoever has one.

    Raises:
        FeatureError: a prediction that is not finite; names the slide.
    """
    model.eval()
    device = next(model.parameters()).device
    scores: list[np.ndarray] = []
    losses: list[float] = []
    for bag in bags:
        output = model(bag.features)
        scores.append(task.objective.prediction(model, output).double().cpu().numpy())
        losses.append(float(sum(task.objective.losses(model, output, bag.label.to(device)).values())))
        if not (np.isfinite(scores[-1]).all() and np.isfinite(losses[-1])):
            raise FeatureError(f"{task.unit} {bag.slide_id}: the prediction is not finite; lower train.lr")
    return task.predictions(bags, np.stack(scores)), float(np.mean(losses))
