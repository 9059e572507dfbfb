"""AB-MIL and gated AB-MIL on the classic sets (Ilse, Tomczak, Welling, ICML 2018, section 4.1 and its appendix).

The networks are tiny and the steps many, so the gradient is written out and added to the momentum in place: half the
time of automatic differentiation. A test holds it against that.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mhim.papers.repetition import Recipe

Pooling = Literal["attention", "gated"]
WIDTHS = (256, 128, 64)
ATTENTION = 64
MOMENTUM = 0.9

DEFAULT = Recipe(5e-4, 5e-3, 100)
RECIPES = MappingProxyType(
    {
        "musk1": Recipe(5e-4, 5e-3, 100, stated=True),
        "musk2": Recipe(5e-4, 3e-2, 100, stated=True),
        "fox": Recipe(5e-4, 5e-3, 100, stated=True),
        "tiger": Recipe(1e-4, 1e-2, 100, stated=True),
        "elephant": Recipe(1e-4, 5e-3, 100, stated=True),
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
    "The paper's appendix could not be read while this was written. From memory of it and not verified: learning "
    "rates, weight decays, momentum 0.9, 100 epochs, the printed errors, and which epoch was scored (here: the last "
    "one). Whether it used dropout is unknown (here: none)."
)


@dataclass(frozen=True)
class Activity:
    """What a forward pass leaves for the gradient: inputs of each layer, and what is between them.

    Attributes:
        inputs: of the three hidden layers, then the embedded instances.
        kept: scale of each hidden unit by dropout; empty without dropout.
        tangent: tanh(V h).
        gate: sigmoid(U h), or None.
        attention: (K, N) after the softmax.
        pooled: (K, 1, 64).
        logit: (K,).
    """

    inputs: list[Tensor]
    kept: list[Tensor]
    tangent: Tensor
    gate: Tensor | None
    attention: Float[Tensor, "folds instances"]
    pooled: Tensor
    logit: Float[Tensor, " folds"]


class FoldNetworks:
    """K networks side by side: fc-256, fc-128, fc-64 with ReLU, attention-64, fc-1 with sigmoid; descent with momentum.

    Weights are Glorot-uniform, biases zero. Layers by number: 0 to 2 hidden, 3 V, 4 w, 5 classifier, 6 U.

    Args:
        folds: K.
        in_dim: D.
        pooling: plain attention w . tanh(V h), or gated with sigmoid(U h) (equations 8 and 9).
        recipe: learning rate, weight decay, dropout after each hidden layer.
        generator: draws the weights, and in training the dropout.
    """

    shuffles = True

    def __init__(self, folds: int, in_dim: int, pooling: Pooling, recipe: Recipe, generator: torch.Generator) -> None:
        self.recipe = recipe
        self.generator = generator
        sizes = list(zip((in_dim, *WIDTHS), WIDTHS, strict=False))
        sizes += [(WIDTHS[-1], ATTENTION), (ATTENTION, 1), (WIDTHS[-1], 1)]
        sizes += [(WIDTHS[-1], ATTENTION)] if pooling == "gated" else []
        self.weights = [self._glorot(folds, *size) for size in sizes]
        self.biases = [torch.zeros(folds, 1, size[1]) for size in sizes]
        self.velocity = [torch.zeros_like(each) for each in self.parameters]

    def _glorot(self, folds: int, fan_in: int, fan_out: int) -> Tensor:
        limit = (6 / (fan_in + fan_out)) ** 0.5
        return (2 * torch.rand(folds, fan_in, fan_out, generator=self.generator) - 1) * limit

    @property
    def parameters(self) -> list[Tensor]:
        """Every weight, then every bias, K first."""
        return [*self.weights, *self.biases]

    def begin_epoch(self, epoch: int) -> None:
        """The learning rate is constant."""

    def logits(self, x: Float[Tensor, "folds instances in_dim"], real: Bool[Tensor, "folds instances"]) -> Tensor:
        """(K,) logits of one bag a fold."""
        return self.forward(x, real, training=False).logit

    def step(self, x: Tensor, real: Tensor, target: Float[Tensor, " folds"], active: Bool[Tensor, " folds"]) -> None:
        """For the active folds: v <- 0.9 v + g + wd w; w <- w - lr v."""
        idle = None if bool(active.all()) else ~active
        tensors = [*self.parameters, *self.velocity] if idle is not None else []
        before = [tensor[idle].clone() for tensor in tensors]
        self.add_gradient(self.forward(x, real, training=True), target, MOMENTUM)
        torch._foreach_add_(self.velocity, self.parameters, alpha=self.recipe.weight_decay)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(self.parameters, self.velocity, alpha=-self.recipe.lr)  # pyright: ignore[reportPrivateImportUsage]
        for tensor, value in zip(tensors, before, strict=True):
            tensor[idle] = value

    def forward(self, x: Tensor, real: Bool[Tensor, "folds instances"], training: bool) -> Activity:
        """Logits of one bag a fold, and what the gradient needs."""
        inputs, kept = [x], list[Tensor]()
        for index in range(len(WIDTHS)):
            x = self._layer(index, x).relu_()
            if training and self.recipe.dropout:
                keep = torch.rand(x.shape, generator=self.generator) >= self.recipe.dropout
                kept.append(keep / (1 - self.recipe.dropout))
                x = x * kept[-1]
            inputs.append(x)
        tangent = self._layer(3, x).tanh_()
        gate = self._layer(6, x).sigmoid_() if len(self.weights) > 6 else None
        score = self._layer(4, tangent if gate is None else tangent * gate)[..., 0]
        attention = score.masked_fill_(~real, -torch.inf).softmax(dim=-1)
        pooled = attention[:, None] @ x
        return Activity(inputs, kept, tangent, gate, attention, pooled, self._layer(5, pooled)[:, 0, 0])

    def _layer(self, index: int, x: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[index], x, self.weights[index])

    def add_gradient(self, at: Activity, target: Float[Tensor, " folds"], decay: float) -> None:
        """Add the gradient of the cross-entropy to ``decay`` times the velocity, each fold for itself."""
        h = at.inputs[-1]
        d_logit = (at.logit.sigmoid() - target)[:, None, None]
        d_pooled = self._backward(5, at.pooled, d_logit, decay)
        d_attention = (h @ d_pooled.mT)[..., 0]
        d_score = at.attention * (d_attention - (at.attention * d_attention).sum(dim=1, keepdim=True))
        gated = at.tangent if at.gate is None else at.tangent * at.gate
        d_gated = self._backward(4, gated, d_score[..., None], decay)
        d_tangent = d_gated if at.gate is None else d_gated * at.gate
        d = at.attention[..., None] * d_pooled
        d += self._backward(3, h, d_tangent * (1 - at.tangent**2), decay)
        if at.gate is not None:
            d += self._backward(6, h, d_gated * at.tangent * at.gate * (1 - at.gate), decay)
        for index in reversed(range(len(WIDTHS))):
            d = d * at.kept[index] if at.kept else d
            d *= at.inputs[index + 1] > 0
            d = self._backward(index, at.inputs[index], d, decay, onward=index > 0)

    def _backward(self, index: int, x: Tensor, d: Tensor, decay: float, onward: bool = True) -> Tensor:
        """Add a layer's gradient to its velocity; the gradient of its input."""
        weight, bias = self.velocity[index], self.velocity[len(self.weights) + index]
        torch.baddbmm(weight, x.mT, d, beta=decay, out=weight)
        bias.mul_(decay).add_(d.sum(dim=1, keepdim=True))
        return d @ self.weights[index].mT if onward else d
