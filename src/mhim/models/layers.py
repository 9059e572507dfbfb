"""Parts that several aggregators share: projection, attention scores, activations."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhim.kernels import Branches, Embedding, branch_scores
from mhim.kernels.activations import FUSED

Activation = Literal["relu", "gelu", "tanh"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def activation(name: Activation) -> nn.Module:
    """A fresh activation module by name."""
    return _ACTIVATIONS[name]()


class Projection(nn.Sequential):
    """Patch embedding z = drop(act(W x + b)) (MHIM-MIL, ICCV 2023)."""

    def __init__(self, in_dim: int, dim: int, act: Activation, dropout: float, bias: bool = True) -> None:
        super().__init__(nn.Linear(in_dim, dim, bias=bias), activation(act), nn.Dropout(dropout))

    def embedding(self, mean: Tensor | None, scale: Tensor | None) -> Embedding | None:
        """The same layer for the fast paths, over features standardised by mean and scale; None without ReLU."""
        linear, act, dropout = self
        if not (isinstance(linear, nn.Linear) and isinstance(act, nn.ReLU) and isinstance(dropout, nn.Dropout)):
            return None
        weight, bias = linear.weight, linear.bias
        if mean is not None and scale is not None:
            weight = weight / scale
            shift = weight @ mean
            bias = -shift if bias is None else bias - shift
        return Embedding(weight, bias, dropout.p if self.training else 0.0)


class AttentionScores(nn.Module):
    """Unnormalised attention of each token, plain or gated (Ilse et al., ICML 2018, eq. 8 and 9).

    Args:
        dim: token width.
        hidden: width of the attention branch.
        branches: attention rows (1, or one per class).
        act: activation of the (first) branch; MHIM v1 uses ReLU, Ilse et al. tanh.
        gated: multiply by a sigmoid branch.
        bias: biases in the attention layers.
        dropout: dropout on each branch.
    """

    def __init__(
        self, dim: int, hidden: int, branches: int, act: Activation, gated: bool, bias: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden, bias=bias)
        self.gate = nn.Linear(dim, hidden, bias=bias) if gated else None
        self.act = activation(act)
        self.act_name = act
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, branches, bias=bias)

    def forward(self, tokens: Float[Tensor, "instances dim"]) -> Float[Tensor, "branch instances"]:
        """Raw scores, one row per branch, before the softmax over instances."""
        hidden = self.dropout(self.act(self.value(tokens)))
        if self.gate is not None:
            hidden = hidden * self.dropout(torch.sigmoid(self.gate(tokens)))
        return self.score(hidden).T

    def of_rows(self, tokens: Float[Tensor, "rows dim"]) -> Float[Tensor, "branch rows"]:
        """The same scores by the fast layers where they know the activation."""
        branches = self.branches()
        return self(tokens) if branches is None else branch_scores(tokens, branches)

    def branches(self) -> Branches | None:
        """The same scores for the fast paths; None for an activation that they do not know."""
        if self.act_name not in FUSED:
            return None
        gate = (None, None) if self.gate is None else (self.gate.weight, self.gate.bias)
        return Branches(
            value=(self.value.weight, self.value.bias),
            gate=gate,
            score=(self.score.weight, self.score.bias),
            act=self.act_name,
            rate=self.dropout.p if self.training else 0.0,
        )
