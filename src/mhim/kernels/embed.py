"""Instance tokens relu(x W^T + b) with dropout, chunk by chunk, for chosen rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mhim.kernels.dropout import draw_seed, keep_mask, realised
from mhim.kernels.gemm import add_outer, affine
from mhim.kernels.rows import Rows


@dataclass(frozen=True)
class Embedding:
    """One projection layer z = drop(relu(W x + b)).

    Attributes:
        weight: (H, D).
        bias: (H,) or None.
        rate: dropout rate that is in force, 0 in evaluation.
    """

    weight: Float[Tensor, "dim in_dim"]
    bias: Float[Tensor, " dim"] | None
    rate: float = 0.0

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias times 1 / (1 - rate): ReLU passes a positive factor, so dropout needs no further pass."""
        if not self.rate:
            return self.weight, self.bias
        factor = 1 / (1 - realised(self.rate))
        return self.weight * factor, None if self.bias is None else self.bias * factor


def chunk_tokens(
    x: Tensor, weight: Tensor, bias: Tensor | None, rate: float, seed: int, rows: slice | Tensor
) -> Float[Tensor, "n dim"]:
    """Tokens of some rows from scaled weights. An element is 0 exactly where ReLU or dropout stops its gradient."""
    tokens = affine(x, weight, bias, relu=True)
    return tokens.mul_(keep_mask(seed, rows, tokens.shape[1], rate, tokens.device)) if rate else tokens


def token_chunks(rows: Rows, embedding: Embedding, seed: int) -> Iterator[Float[Tensor, "n dim"]]:
    """Tokens of the rows chunk by chunk; no gradient. Equal to those of ``embed`` with the seed.

    Args:
        rows: of a bag's features.
        embedding: the projection.
        seed: of the dropout masks.
    """
    rows = rows.streamed()
    weight, bias = embedding.scaled()
    low = weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)

    def tokens(place: slice) -> Tensor:  # holds nothing, so that a chunk dies with whoever asked for it
        with torch.autocast(rows.device.type, enabled=False):
            return chunk_tokens(rows.part(place), *low, embedding.rate, seed, place)

    return map(tokens, rows.parts())


def embed(rows: Rows, embedding: Embedding, seed: int | None = None) -> Float[Tensor, "rows dim"]:
    """Tokens of the rows, (K, H) in the rows' dtype.

    The gradient keeps the tokens and nothing else: it is read from where they are positive. The plain form is
    ``dropout(relu(F.linear(features[index], weight, bias)))``.

    Args:
        rows: of a bag's features.
        embedding: the projection.
        seed: of the dropout masks; by default drawn from PyTorch's global generator.
    """
    seed = draw_seed() if seed is None and embedding.rate else seed or 0
    return _Embed.apply(rows, embedding.rate, seed, *embedding.scaled())


def tokens_at(rows: Rows, positions: Int[Tensor, " picked"], embedding: Embedding, seed: int) -> Tensor:
    """Tokens (P, H) of a few of the rows, equal to those that ``embed`` or ``pool`` computed with the same seed."""
    weight, bias = embedding.scaled()
    tokens = F.linear(rows.at(positions).to(weight.dtype), weight, bias).relu()
    if not embedding.rate:
        return tokens
    return tokens * keep_mask(seed, positions, tokens.shape[1], embedding.rate, tokens.device)


class _Embed(torch.autograd.Function):
    """Forward and backward of :func:`embed`."""

    @staticmethod
    def forward(ctx: Any, rows: Rows, rate: float, seed: int, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All chunks into one (K, H)."""
        low = weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        tokens = torch.empty(len(rows), len(weight), dtype=rows.dtype, device=rows.device)
        with torch.autocast(rows.device.type, enabled=False):
            for place in rows.parts():
                tokens[place] = chunk_tokens(rows.part(place), *low, rate, seed, place)
        ctx.rows, ctx.has_bias, ctx.weight_like = rows, bias is not None, (weight.shape, weight.dtype)
        ctx.save_for_backward(tokens)
        return tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the scaled weight and bias."""
        (tokens,) = ctx.saved_tensors
        shape, dtype = ctx.weight_like
        weight = torch.zeros(shape, dtype=dtype, device=tokens.device)
        bias = torch.zeros(shape[0], dtype=dtype, device=tokens.device) if ctx.has_bias else None
        with torch.autocast(tokens.device.type, enabled=False):
            for place in ctx.rows.parts():
                before = torch.ops.aten.threshold_backward(grads[0][place], tokens[place], 0)
                add_outer(weight, before, ctx.rows.part(place))
                if bias is not None:
                    bias += before.sum(dim=0)
        return None, None, None, weight, bias
