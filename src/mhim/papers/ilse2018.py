"""AB-MIL and gated AB-MIL on the classic sets (Ilse, Tomczak, Welling, ICML 2018, section 4.1 and its appendix).

All folds of one repetition train at once: weights carry a leading axis of folds, every fold sees its own bag in every
step, and nothing is shared between them, so that each comes out as if it had been trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mhim.papers.mil_sets import MILSet, training_scale

Pooling = Literal["attention", "gated"]
WIDTHS = (256, 128, 64)
ATTENTION = 64
MOMENTUM = 0.9
EPOCHS = 100


@dataclass(frozen=True)
class Recipe:
    """Optimisation of one set: stochastic gradient descent with momentum, one bag a step.

    Attributes:
        lr: learning rate.
        weight_decay: L2 term.
        epochs: passes over the training bags.
        dropout: after each hidden layer.
        stated: whether the paper has a row for this set; else these are the defaults.
    """

    lr: float = 5e-4
    weight_decay: float = 5e-3
    epochs: int = EPOCHS
    dropout: float = 0.0
    stated: bool = False


RECIPES = MappingProxyType(
    {
        "musk1": Recipe(5e-4, 5e-3, stated=True),
        "musk2": Recipe(5e-4, 3e-2, stated=True),
        "fox": Recipe(5e-4, 5e-3, stated=True),
        "tiger": Recipe(1e-4, 1e-2, stated=True),
        "elephant": Recipe(1e-4, 5e-3, stated=True),
    }
)
PUBLISHED = MappingProxyType(
    {
        ("musk1", "attention"): (0.892, 0.040),
        ("musk2", "attention"): (0.858, 0.048),
        ("fox", "attention"): (0.615, 0.043),
        ("tiger", "attention"): (0.839, 0.022),
        ("elephant", "attention"): (0.868, 0.022),
        ("musk1", "gated"): (0.900, 0.050),
        ("musk2", "gated"): (0.863, 0.042),
        ("fox", "gated"): (0.603, 0.029),
        ("tiger", "gated"): (0.845, 0.018),
        ("elephant", "gated"): (0.857, 0.027),
    }
)
"""Accuracy and its printed error, by set and pooling."""

UNVERIFIED = (
    "The paper itself could not be consulted while this was written. From memory of its appendix and not verified: "
    "learning rates, weight decays, momentum 0.9, 100 epochs, the printed errors, and which epoch was scored (here: "
    "the last one; the paper may have chosen it by validation error). Whether it used dropout is unknown (here: none)."
)


@dataclass(frozen=True)
class Repetition:
    """One cross-validation, fold by fold.

    Attributes:
        accuracy: (K,) on the test bags after the last epoch, threshold 0.5.
        best_accuracy: (K,) of the epoch with the fewest test errors (then the lowest test loss): optimistic, what
            choosing the epoch on the test fold would print. Never the result.
        bag: (B,) bags in the order of ``probability``.
        probability: (B,) of the test bags after the last epoch.
        fold: (B,) fold of each.
    """

    accuracy: NDArray[np.float64]
    best_accuracy: NDArray[np.float64]
    bag: NDArray[np.int64]
    probability: NDArray[np.float64]
    fold: NDArray[np.int64]


class FoldNetworks:
    """K networks of equal shape side by side: fc-256, fc-128, fc-64 with ReLU, attention-64, fc-1 with sigmoid.

    Weights are Glorot-uniform, biases zero.

    Args:
        folds: K.
        in_dim: D.
        pooling: plain attention w . tanh(V h), or gated with sigmoid(U h) (equations 8 and 9).
        dropout: after each hidden layer, in training.
        generator: draws the weights, and in training the dropout.
    """

    def __init__(self, folds: int, in_dim: int, pooling: Pooling, dropout: float, generator: torch.Generator) -> None:
        self.dropout = dropout
        self.generator = generator
        sizes = list(zip((in_dim, *WIDTHS), WIDTHS, strict=False))
        sizes += [(WIDTHS[-1], ATTENTION), (ATTENTION, 1), (WIDTHS[-1], 1)]
        sizes += [(WIDTHS[-1], ATTENTION)] if pooling == "gated" else []
        self.weights = [self._glorot(folds, *size) for size in sizes]
        self.biases = [torch.zeros(folds, 1, size[1], requires_grad=True) for size in sizes]

    def _glorot(self, folds: int, fan_in: int, fan_out: int) -> Tensor:
        limit = (6 / (fan_in + fan_out)) ** 0.5
        drawn = torch.rand(folds, fan_in, fan_out, generator=self.generator)
        return ((2 * drawn - 1) * limit).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """Every weight and bias, K first."""
        return [*self.weights, *self.biases]

    def _layer(self, index: int, x: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[index], x, self.weights[index])

    def __call__(
        self, x: Float[Tensor, "folds instances in_dim"], real: Bool[Tensor, "folds instances"], training: bool
    ) -> Float[Tensor, " folds"]:
        """Logits of one bag a fold; ``real`` says which instances are no padding."""
        h = self.hidden(x, training)
        return self.classify(h, self.attention(h, real))

    def hidden(self, x: Tensor, training: bool) -> Float[Tensor, "folds instances hidden"]:
        """Embedded instances."""
        for index in range(len(WIDTHS)):
            x = self._layer(index, x).relu()
            if training and self.dropout:
                kept = torch.rand(x.shape, generator=self.generator) >= self.dropout
                x = x * kept / (1 - self.dropout)
        return x

    def scores(self, h: Tensor) -> Float[Tensor, "folds instances"]:
        """Attention before the softmax."""
        gate = self._layer(3, h).tanh()
        if len(self.weights) > 6:
            gate = gate * self._layer(6, h).sigmoid()
        return self._layer(4, gate)[..., 0]

    def attention(self, h: Tensor, real: Bool[Tensor, "folds instances"]) -> Float[Tensor, "folds instances"]:
        """Softmax over the real instances of one bag a fold."""
        return self.scores(h).masked_fill(~real, -torch.inf).softmax(dim=-1)

    def classify(self, h: Tensor, attention: Tensor) -> Float[Tensor, " folds"]:
        """Logit of the attention-weighted mean embedding."""
        return self._layer(5, attention[:, None] @ h)[:, 0, 0]


def train_repetition(data: MILSet, repeat: int, pooling: Pooling, recipe: Recipe, seed: int) -> Repetition:
    """Train and test every fold of one repetition of the set's published cross-validation.

    Features are standardised by each fold's training instances.

    Args:
        data: the set.
        repeat: row of ``test_fold``.
        pooling: plain or gated attention.
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
    networks = FoldNetworks(len(numbers), features.shape[2], pooling, recipe.dropout, generator)
    optimiser = torch.optim.SGD(
        networks.parameters, lr=recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay, fused=True
    )
    best = [(np.inf, np.inf)] * len(numbers)
    correct, probabilities = np.zeros(len(numbers)), []
    for _ in range(recipe.epochs):
        _epoch(networks, optimiser, data, features, train, generator)
        probabilities = _score(networks, data, features, test)
        correct = np.array([_accuracy(p, data.label[bags]) for p, bags in zip(probabilities, test, strict=True)])
        for index, (p, bags) in enumerate(zip(probabilities, test, strict=True)):
            best[index] = min(best[index], (1 - correct[index], _log_loss(p, data.label[bags])))
    return Repetition(
        accuracy=correct,
        best_accuracy=np.array([1 - error for error, _ in best]),
        bag=np.concatenate(test),
        probability=np.concatenate(probabilities),
        fold=np.repeat(numbers, [len(bags) for bags in test]),
    )


def _epoch(
    networks: FoldNetworks,
    optimiser: torch.optim.SGD,
    data: MILSet,
    features: Tensor,
    train: Sequence[NDArray[np.int64]],
    generator: torch.Generator,
) -> None:
    """One pass: in every step each fold sees one of its training bags; a fold that has seen all of them waits."""
    orders = [bags[torch.randperm(len(bags), generator=generator).numpy()] for bags in train]
    for step in range(max(map(len, orders))):
        active = [step < len(order) for order in orders]
        bags = np.array([order[min(step, len(order) - 1)] for order in orders])
        index, real = bag_rows(data, bags)
        x = torch.gather(features, 1, index[..., None].expand(-1, -1, features.shape[2]))
        logits = networks(x, real, training=True)
        target = torch.from_numpy(data.label[bags]).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        optimiser.zero_grad()
        loss.backward()
        _descend(networks, optimiser, active)


def _descend(networks: FoldNetworks, optimiser: torch.optim.SGD, active: list[bool]) -> None:
    """One step of v <- 0.9 v + g + wd w; w <- w - lr v, for the folds that are active; the others stay as they are."""
    if all(active):
        optimiser.step()
        return
    idle = torch.tensor([not each for each in active])
    tensors = [p.detach() for p in networks.parameters]
    tensors += [optimiser.state[p]["momentum_buffer"] for p in networks.parameters]
    before = [tensor[idle].clone() for tensor in tensors]
    optimiser.step()
    for tensor, value in zip(tensors, before, strict=True):
        tensor[idle] = value


def bag_rows(
    data: MILSet, bags: NDArray[np.int64]
) -> tuple[Int[Tensor, "folds instances"], Bool[Tensor, "folds instances"]]:
    """Feature rows of one bag a fold, padded with the bag's first row, and which are no padding."""
    count = data.count[bags][:, None]
    place = np.arange(count.max())[None]
    real = place < count
    return torch.from_numpy(data.start[bags][:, None] + np.where(real, place, 0)), torch.from_numpy(real)


@torch.inference_mode()
def _score(
    networks: FoldNetworks, data: MILSet, features: Tensor, test: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    """Probabilities of every fold's test bags; fold by fold the same arithmetic, bag after bag side by side."""
    scored: list[list[float]] = [[] for _ in test]
    for step in range(max(map(len, test))):
        bags = np.array([part[min(step, len(part) - 1)] for part in test])
        index, real = bag_rows(data, bags)
        x = torch.gather(features, 1, index[..., None].expand(-1, -1, features.shape[2]))
        probability = networks(x, real, training=False).sigmoid().double().tolist()
        for fold, part in enumerate(test):
            if step < len(part):
                scored[fold].append(probability[fold])
    return [np.array(values) for values in scored]


def _accuracy(probability: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    return float(np.mean((probability >= 0.5) == (label == 1)))


def _log_loss(probability: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    chosen = np.where(label == 1, probability, 1 - probability)
    return float(-np.log(np.clip(chosen, 1e-12, None)).mean())
