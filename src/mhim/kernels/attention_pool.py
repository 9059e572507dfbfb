"""Projection, attention scores and attention pooling of a bag in one pass by chunks (AB-MIL, CLAM).

What a step needs of an instance, its token and its attention branch, lives as long as its chunk does, or is kept
for the gradient while a budget lasts and computed again beyond it. Softmax over the bag is taken online, so that a
bag of any size is pooled in the memory of one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.kernels.activations import apply_, backward
from mhim.kernels.dropout import draw_seed, keep_mask, realised
from mhim.kernels.embed import Embedding, chunk_tokens
from mhim.kernels.gemm import add_outer, affine
from mhim.kernels.online import OnlineSoftmax
from mhim.kernels.rows import Rows

BUDGET_BYTES = 32 << 20
"""What a step may keep for its gradient; chunks beyond it are computed again."""


@dataclass(frozen=True)
class Branches:
    """The attention scores of AB-MIL and CLAM: w . (act(V z + b) [* sigmoid(U z + c)]) + d.

    Attributes:
        value: V (A, H) and its bias or None.
        gate: U (A, H) and its bias or None; no weight for plain attention.
        score: w (B, A) and its bias or None; one row a branch.
        act: "relu" or "tanh".
        rate: dropout on both factors, 0 in evaluation.
    """

    value: tuple[Tensor, Tensor | None]
    gate: tuple[Tensor | None, Tensor | None]
    score: tuple[Tensor, Tensor | None]
    act: str
    rate: float = 0.0


class Pooled(NamedTuple):
    """A pooled bag.

    Attributes:
        scores: (B, K) attention before its softmax; None when only the bag was asked for.
        embedding: (B, H) the softmax-weighted sum of tokens.
        evidence: (K, E) tokens times the evidence weight, or None.
    """

    scores: Float[Tensor, "branch rows"] | None
    embedding: Float[Tensor, "branch dim"]
    evidence: Float[Tensor, "rows classes"] | None


class _Spec(NamedTuple):
    """What is no tensor: dropout rates, activation, seed of the masks, budget."""

    rate: float
    branch_rate: float
    act: str
    seed: int
    budget: int


class _Weights(NamedTuple):
    """All weights, in the order in which the gradient returns them."""

    weight: Tensor
    bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None
    score: Tensor
    score_bias: Tensor | None
    evidence: Tensor | None

    def low(self, dtype: torch.dtype) -> _Weights:
        """In the computing dtype."""
        parts: Any = [None if part is None else part.detach().to(dtype) for part in self]
        return _Weights(*parts)

    def branch(self) -> tuple[Tensor, Tensor | None]:
        """Value and gate as one layer, (A, H) or (2 A, H), and its bias."""
        if self.gate is None:
            return self.value, self.value_bias
        biases = [bias for bias in (self.value_bias, self.gate_bias) if bias is not None]
        return torch.cat([self.value, self.gate]), torch.cat(biases) if biases else None


class _Chunk(NamedTuple):
    """What the gradient needs of a chunk; ``x`` where it is kept, ``mixed`` is value * gate, after dropout."""

    x: Tensor | None
    tokens: Tensor
    value: Tensor
    gate: Tensor | None
    kept: Tensor | None
    mixed: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of its distinct tensors."""
        distinct = {id(part): part for part in self if part is not None}
        return sum(part.nbytes for part in distinct.values())


def pool(
    rows: Rows,
    embedding: Embedding,
    branches: Branches,
    evidence: Float[Tensor, "classes dim"] | None = None,
    instances: bool = True,
    seed: int | None = None,
    budget: int = BUDGET_BYTES,
) -> Pooled:
    """Embed, score and pool the rows.

    The plain form: ``z = dropout(relu(F.linear(x, W, b)))``; ``e = attention(z)``; ``softmax(e) @ z``;
    ``z @ evidence.T``.

    Args:
        rows: K rows of a bag's features, at least one.
        embedding: the projection.
        branches: the attention scores.
        evidence: (E, H) a further product of every token that is wanted.
        instances: hand out what has a row per instance; without it memory does not grow with K.
        seed: of the dropout masks; by default drawn from PyTorch's global generator.
        budget: bytes that may be kept for the gradient.
    """
    weight, bias = embedding.scaled()
    weights = _Weights(weight, bias, *branches.value, *branches.gate, *branches.score, evidence)
    is_random = embedding.rate > 0 or branches.rate > 0
    seed = draw_seed() if seed is None and is_random else seed or 0
    spec = _Spec(embedding.rate, branches.rate, branches.act, seed, budget)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in weights):
        if not instances:
            weights = weights._replace(evidence=None)
        scores, pooled, seen = _Pool.apply(rows, spec, *weights)
        return Pooled(scores if instances else None, pooled, seen)
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        scores, pooled, seen, _ = _stream(
            rows if instances else rows.streamed(), spec._replace(budget=-1), weights, instances
        )
    return Pooled(scores, pooled, seen)


def _stream(
    rows: Rows, spec: _Spec, weights: _Weights, instances: bool
) -> tuple[Tensor | None, Tensor, Tensor | None, tuple[list[_Chunk | None], Tensor, Tensor]]:
    """One pass: scores (B, K), pooled (B, H), evidence (K, E), and for the gradient chunks, maximum, sum."""
    low = weights.low(rows.dtype)
    branch, branches, dim = low.branch(), len(low.score), len(low.weight)
    device, whole = rows.device, weights.weight.dtype
    scores = torch.empty(branches, len(rows), dtype=whole, device=device) if instances else None
    classes = low.evidence if instances else None
    seen = None if classes is None else torch.empty(len(rows), len(classes), dtype=whole, device=device)
    softmax = OnlineSoftmax(torch.empty(branches, dim, dtype=whole, device=device))
    kept, budget = list[_Chunk | None](), spec.budget
    keeps_x = rows.makes_copies and len(rows) * (low.weight.shape[1] + dim + 2 * len(branch[0])) * 4 <= budget
    for place in rows.parts():
        chunk = _chunk(x := rows.part(place), place, low, branch, spec)
        if keeps_x:
            chunk = chunk._replace(x=x)
        tokens, mixed = chunk.tokens.to(whole), chunk.mixed.to(whole)
        part = _small(mixed, weights.score, weights.score_bias).T
        softmax.add(part, tokens)
        if scores is not None:
            scores[:, place] = part
        if seen is not None and weights.evidence is not None:
            seen[place] = tokens @ weights.evidence.T
        budget -= chunk.nbytes
        kept.append(chunk if budget >= 0 else None)
        del x, chunk, tokens, mixed  # they would live until those of the next chunk are there
    return scores, softmax.pooled, seen, (kept, softmax.top, softmax.total)


def _small(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X W^T + b for a handful of outputs, in full precision: what ranks instances must not have ties by rounding."""
    product = x @ weight.T
    return product if bias is None else product + bias


def _chunk(x: Tensor, place: slice, low: _Weights, branch: tuple[Tensor, Tensor | None], spec: _Spec) -> _Chunk:
    """Tokens and attention branch of the rows at a place."""
    tokens = chunk_tokens(x, low.weight, low.bias, spec.rate, spec.seed, place)
    width, raw = len(low.value), affine(tokens, *branch)
    value = apply_(spec.act, raw[:, :width])
    gate = None if low.gate is None else raw[:, width:].sigmoid_()
    mixed, kept = value if gate is None else value * gate, None
    if spec.branch_rate:
        kept = keep_mask(spec.seed + 1, place, width, spec.branch_rate, x.device)
        if gate is not None:
            kept = kept & keep_mask(spec.seed + 2, place, width, spec.branch_rate, x.device)
        mixed = mixed * kept * _branch_factor(spec, gate is not None)
    return _Chunk(None, tokens, value, gate, kept, mixed)


def _branch_factor(spec: _Spec, is_gated: bool) -> float:
    return (1 - realised(spec.branch_rate)) ** (-2 if is_gated else -1)


class _Pool(torch.autograd.Function):
    """Forward and backward of :func:`pool`."""

    @staticmethod
    def forward(ctx: Any, rows: Rows, spec: _Spec, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
        """See :func:`pool`."""
        weights = _Weights(*parts)  # type: ignore[arg-type]
        with torch.autocast(rows.device.type, enabled=False):
            scores, pooled, seen, (chunks, top, total) = _stream(rows, spec, weights, instances=True)
        ctx.set_materialize_grads(False)
        ctx.rows, ctx.spec, ctx.chunks = rows, spec, chunks
        ctx.save_for_backward(scores, pooled, top, total, *parts)
        return scores, pooled, seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all weights."""
        with torch.autocast(ctx.rows.device.type, enabled=False):
            return None, None, *_gradients(ctx, grads)


def _gradients(ctx: Any, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of all weights, chunk by chunk."""
    scores, pooled, top, total, *parts = ctx.saved_tensors
    of_scores, of_pooled, of_evidence = grads
    rows, spec, weights = ctx.rows, ctx.spec, _Weights(*parts)
    low, sums = weights.low(rows.dtype), [None if part is None else torch.zeros_like(part) for part in weights]
    branch, of_branch = low.branch(), [None if part is None else torch.zeros_like(part) for part in weights.branch()]
    if of_pooled is None:
        of_pooled = torch.zeros_like(pooled)
    along = (of_pooled * pooled).sum(dim=1, keepdim=True)
    behind = torch.cat([branch[0], of_pooled.to(rows.dtype)])
    if of_evidence is not None and low.evidence is not None:
        behind = torch.cat([behind, low.evidence])
    for place, kept in zip(rows.parts(), ctx.chunks, strict=True):
        x = rows.part(place) if kept is None or kept.x is None else kept.x
        chunk = _chunk(x, place, low, branch, spec) if kept is None else kept
        share = (scores[:, place] - top).exp() / total
        of_score = share * ((of_pooled.to(rows.dtype) @ chunk.tokens.T).to(share.dtype) - along)
        if of_scores is not None:
            of_score = of_score + of_scores[:, place]
        before = _before_branch(of_score.to(rows.dtype), chunk, low, spec, sums)
        _add_layer(of_branch, before, chunk.tokens)
        ahead = [before, share.T.to(rows.dtype)]
        if of_evidence is not None:
            ahead.append(of_evidence[place].to(rows.dtype))
            add_outer(_sum(sums, "evidence"), ahead[-1], chunk.tokens)
        of_tokens = affine(torch.cat(ahead, dim=1), behind.T)
        _add_layer(sums[:2], torch.ops.aten.threshold_backward(of_tokens, chunk.tokens, 0), x)
        del x, chunk, before, ahead, of_tokens
    for part, names in zip(of_branch, (("value", "gate"), ("value_bias", "gate_bias")), strict=True):
        for name, piece in zip(names, [] if part is None else part.split(len(low.value)), strict=False):
            _sum(sums, name).copy_(piece)
    return sums


def _sum(sums: Sequence[Tensor | None], name: str) -> Tensor:
    """The running gradient of a weight that is known to be there."""
    found = sums[_Weights._fields.index(name)]
    assert found is not None
    return found


def _add_layer(sums: Sequence[Tensor | None], before: Tensor, x: Tensor) -> None:
    """A layer's part of the gradients of its weight, and of its bias if it has one."""
    weight, bias = sums
    assert weight is not None
    add_outer(weight, before, x)
    if bias is not None:
        bias += before.sum(dim=0)


def _before_branch(
    of_score: Float[Tensor, "branch n"], chunk: _Chunk, low: _Weights, spec: _Spec, sums: Sequence[Tensor | None]
) -> Float[Tensor, "n joint"]:
    """Gradient before the activations of value and gate; those of the scores' weight and bias go into their sums."""
    add_outer(_sum(sums, "score"), of_score.T, chunk.mixed)
    if low.score_bias is not None:
        _sum(sums, "score_bias").add_(of_score.sum(dim=1))
    of_mixed = of_score.T @ low.score
    if chunk.kept is not None:
        of_mixed = of_mixed * chunk.kept * _branch_factor(spec, chunk.gate is not None)
    if chunk.gate is None:
        return backward(spec.act, of_mixed, chunk.value)
    of_value = backward(spec.act, of_mixed * chunk.gate, chunk.value)
    return torch.cat([of_value, torch.ops.aten.sigmoid_backward(of_mixed * chunk.value, chunk.gate)], dim=1)
