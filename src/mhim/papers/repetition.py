"""One repetition of a paper's cross-validation: all its folds train at once, and nothing is chosen on their test bags.

Weights carry a leading axis of folds, every fold sees its own bag in every step, and nothing is shared between them,
so that each comes out as if it had been trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from mhim.papers.mil_sets import MILSet, training_scale


@dataclass(frozen=True)
class Recipe:
    """Optimisation of one set, one bag a step.

    Attributes:
        lr: learning rate.
        weight_decay: L2 term.
        epochs: passes over the training bags.
        dropout: after each hidden layer.
        stated: whether the paper has a row for this set; else these are the defaults.
    """

    lr: float
    weight_decay: float
    epochs: int
    dropout: float = 0.0
    stated: bool = False


class FoldTrainer(Protocol):
    """K networks of equal shape with their optimiser.

    ``x`` is (K, N, D), the bags padded to the longest; ``real`` (K, N) says which instances are no padding.
    """

    @property
    def shuffles(self) -> bool:
        """Whether every epoch draws a new order of the bags; else the order is drawn once."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, from 0."""
        ...

    def step(
        self,
        x: Float[Tensor, "folds instances in_dim"],
        real: Bool[Tensor, "folds instances"],
        target: Float[Tensor, " folds"],
        active: Bool[Tensor, " folds"],
    ) -> None:
        """One step of every active fold; the others stay as they are."""
        ...

    def logits(
        self, x: Float[Tensor, "folds instances in_dim"], real: Bool[Tensor, "folds instances"]
    ) -> Float[Tensor, " folds"]:
        """Logit of each bag, without dropout."""
        ...


Build = Callable[[int, Float[Tensor, " folds"], Recipe, torch.Generator], FoldTrainer]
"""From the features' width, negative over positive training bags of each fold, the recipe, and a generator."""


@dataclass(frozen=True)
class Repetition:
    """One cross-validation, fold by fold.

    Attributes:
        accuracy: (K,) on the test bags after the last epoch, threshold 0.5: nothing is chosen on the test fold.
        best_accuracy: (K,) of the epoch with the fewest test errors, threshold 0.5: what choosing the epoch on the
            test fold would print.
        best_threshold_accuracy: (K,) highest over the epochs, each at the threshold that separates the same test bags
            best (TPR - FPR): what choosing epoch and threshold on the test fold would print.
        bag: (B,) bags in the order of ``probability``.
        probability: (B,) of the test bags after the last epoch.
        fold: (B,) fold of each.
    """

    accuracy: NDArray[np.float64]
    best_accuracy: NDArray[np.float64]
    best_threshold_accuracy: NDArray[np.float64]
    bag: NDArray[np.int64]
    probability: NDArray[np.float64]
    fold: NDArray[np.int64]


def train_repetition(data: MILSet, repeat: int, build: Build, recipe: Recipe, seed: int) -> Repetition:
    """Train and test every fold of one repetition of the set's published cross-validation.

    Features are standardised by each fold's training instances.

    Args:
        data: the set.
        repeat: row of ``test_fold``.
        build: makes the networks.
        recipe: the optimisation.
        seed: with ``repeat`` it gives weights, bag order and dropout.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + repeat)
    fold_of = data.test_fold[repeat]
    numbers = np.unique(fold_of)
    train = [np.flatnonzero(fold_of != number) for number in numbers]
    test = [np.flatnonzero(fold_of == number) for number in numbers]
    scaled = [(data.features - mean) / scale for mean, scale in (training_scale(data, bags) for bags in train)]
    features = torch.from_numpy(np.stack(scaled))
    share = torch.tensor([(data.label[bags] == 0).sum() / data.label[bags].sum() for bags in train]).float()
    trainer = build(features.shape[2], share, recipe, generator)
    labels = [data.label[bags] for bags in test]
    best, best_threshold = np.zeros(len(numbers)), np.zeros(len(numbers))
    accuracy, probabilities = best, list[NDArray[np.float64]]()
    orders = _drawn(train, generator)
    for epoch in range(recipe.epochs):
        trainer.begin_epoch(epoch)
        run_epoch(trainer, data, features, orders)
        orders = _drawn(train, generator) if trainer.shuffles else orders
        probabilities = _score(trainer, data, features, test)
        accuracy = np.array([np.mean((p >= 0.5) == (y == 1)) for p, y in zip(probabilities, labels, strict=True)])
        fitted = np.array([accuracy_at_best(p, y) for p, y in zip(probabilities, labels, strict=True)])
        best, best_threshold = np.maximum(best, accuracy), np.maximum(best_threshold, fitted)
    return Repetition(
        accuracy=accuracy,
        best_accuracy=best,
        best_threshold_accuracy=best_threshold,
        bag=np.concatenate(test),
        probability=np.concatenate(probabilities),
        fold=np.repeat(numbers, [len(bags) for bags in test]),
    )


def _drawn(train: Sequence[NDArray[np.int64]], generator: torch.Generator) -> list[NDArray[np.int64]]:
    return [bags[torch.randperm(len(bags), generator=generator).numpy()] for bags in train]


def accuracy_at_best(probability: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Accuracy at the threshold that maximises TPR - FPR on the very bags scored, the highest of equal ones.

    At 0.5 for bags of one class, which have none. The accuracy of ``mhim.protocols.published_scores``, but quick.
    """
    positive = label == 1
    if positive.all() or not positive.any():
        return float(np.mean((probability >= 0.5) == positive))
    said = probability >= np.append(np.inf, np.unique(probability)[::-1])[:, None]
    best = np.argmax(said[:, positive].mean(axis=1) - said[:, ~positive].mean(axis=1))
    return float(np.mean(said[best] == positive))


def run_epoch(trainer: FoldTrainer, data: MILSet, features: Tensor, orders: Sequence[NDArray[np.int64]]) -> None:
    """One pass: in every step each fold sees its next training bag; a fold that has seen all of them waits.

    Args:
        trainer: K networks.
        data: the set.
        features: (K, M, D) scaled for each fold.
        orders: training bags of each fold.
    """
    labels = torch.from_numpy(data.label).float()
    for step in range(max(map(len, orders))):
        active = torch.tensor([step < len(order) for order in orders])
        bags = np.array([order[min(step, len(order) - 1)] for order in orders])
        x, real = bag_rows(data, features, bags)
        trainer.step(x, real, labels[bags], active)


def bag_rows(
    data: MILSet, features: Float[Tensor, "folds all in_dim"], bags: NDArray[np.int64]
) -> tuple[Float[Tensor, "folds instances in_dim"], Bool[Tensor, "folds instances"]]:
    """Instances of one bag a fold, padded with the bag's first one, and which are no padding."""
    count = data.count[bags][:, None]
    place = np.arange(count.max())[None]
    real = place < count
    index: Int[Tensor, "folds instances"] = torch.from_numpy(data.start[bags][:, None] + np.where(real, place, 0))
    return features[torch.arange(len(bags))[:, None], index], torch.from_numpy(real)


@torch.inference_mode()
def _score(
    trainer: FoldTrainer, data: MILSet, features: Tensor, test: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    """Probabilities of every fold's test bags; fold by fold the same arithmetic, bag after bag side by side."""
    scored: list[list[float]] = [[] for _ in test]
    for step in range(max(map(len, test))):
        bags = np.array([part[min(step, len(part) - 1)] for part in test])
        probability = trainer.logits(*bag_rows(data, features, bags)).sigmoid().double().tolist()
        for fold, part in enumerate(test):
            if step < len(part):
                scored[fold].append(probability[fold])
    return [np.array(values) for values in scored]
