"""Several bags laid one after another in one tensor: no padding, and no question to the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mhim.kernels.attention_pool import Branches
from mhim.kernels.dropout import dropout
from mhim.kernels.linear import linear
from mhim.kernels.transfer import to_device


class Segments:
    """Where each of B bags lies among M rows.

    Args:
        sizes: rows of each bag, at least one each, in their order; numbers that the host knows.
        device: of the rows.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = tuple(sizes)
        self.device = device

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def places(self) -> Iterator[slice]:
        """The rows of each bag."""
        ends = list(accumulate(self.sizes))
        return (slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True))

    @cached_property
    def bag_of(self) -> Int[Tensor, " rows"]:
        """(M,) the bag of each row."""
        return self.spread(torch.arange(len(self)))

    def spread(self, values: Tensor) -> Tensor:
        """(M,) on the device from (B,) on the host: each bag's value for each of its rows."""
        both = to_device(torch.stack([values, torch.tensor(self.sizes)]), self.device)
        return both[0].repeat_interleave(both[1], output_size=sum(self.sizes))

    def split(self, rows: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """Views of each bag's part of a tensor."""
        return rows.split(self.sizes, dim)


class Bags(Sequence[Tensor]):
    """Features (N, D) of several bags on one device, laid together when that is first asked for.

    Args:
        features: of each bag; one width and dtype.
    """

    def __init__(self, features: Sequence[Tensor]) -> None:
        self._features = tuple(features)

    def __len__(self) -> int:
        return len(self._features)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """The features of a bag."""
        return self._features[index]

    @cached_property
    def together(self) -> Float[Tensor, "rows in_dim"]:
        """All bags, one after another."""
        return self[0] if len(self) == 1 else torch.cat(self._features)

    @cached_property
    def segments(self) -> Segments:
        """Where each bag lies in ``together``."""
        return Segments([len(bag) for bag in self], self[0].device)

    def chosen(self, rows: Sequence[Int[Tensor, " _"]]) -> tuple[Int[Tensor, " rows"], Segments]:
        """Some rows of each bag as rows of ``together``, and where each bag's lie among them.

        Args:
            rows: for each bag (K,) int64, at least one, on the device.
        """
        kept = Segments([len(part) for part in rows], self[0].device)
        starts = torch.tensor([place.start for place in self.segments.places])
        return torch.cat(list(rows)) + kept.spread(starts), kept


def segment_softmax(scores: Float[Tensor, "branch rows"], segments: Segments) -> Float[Tensor, "branch rows"]:
    """Softmax over each bag's rows; no gradient of its own. The plain form is a softmax of each part of a split."""
    where = segments.bag_of
    index = where.expand_as(scores)
    top = scores.new_full((len(scores), len(segments)), -torch.inf).scatter_reduce(1, index, scores, "amax")
    share = (scores - top[:, where]).exp_()
    total = scores.new_zeros(len(scores), len(segments)).scatter_add(1, index, share)
    return share.div_(total[:, where])


def segment_pool(
    scores: Float[Tensor, "branch rows"], tokens: Float[Tensor, "rows dim"], segments: Segments
) -> Float[Tensor, "bags branch dim"]:
    """Attention pooling of each bag: softmax of its scores, and the sum of its tokens under that weight.

    The plain form is ``softmax(scores) @ tokens`` of each part of a split. Tokens of lower precision than the
    scores are summed in the scores'.
    """
    with torch.autocast(scores.device.type, enabled=False):
        return _SegmentPool.apply(scores, tokens, segments)


class _SegmentPool(torch.autograd.Function):
    """Forward and backward of :func:`segment_pool`; the products are those of one bag at a time."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tokens: Tensor, segments: Segments) -> Tensor:
        """Keeps scores' shares and the tokens."""
        share = segment_softmax(scores, segments)
        pooled = scores.new_empty(len(segments), len(scores), tokens.shape[1])
        for bag, place in enumerate(segments.places):
            torch.mm(share[:, place], tokens[place].to(share.dtype), out=pooled[bag])
        ctx.segments = segments
        ctx.save_for_backward(share, tokens, pooled)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The share's gradient less its mean under the share, and the share of the pooled gradient."""
        share, tokens, pooled = ctx.saved_tensors
        along = (grads[0] * pooled).sum(dim=-1).T[:, ctx.segments.bag_of]
        of_share, of_tokens = torch.empty_like(share), torch.empty_like(tokens)
        for bag, place in enumerate(ctx.segments.places):
            of_share[:, place] = grads[0][bag] @ tokens[place].T.to(share.dtype)
            of_tokens[place] = share[:, place].T @ grads[0][bag]
        return share * (of_share - along), of_tokens, None


def branch_scores(tokens: Float[Tensor, "rows dim"], branches: Branches) -> Float[Tensor, "branch rows"]:
    """Attention scores of any rows, in the dtype of the weights; the plain form is ``AttentionScores``."""
    weight, bias = branches.score
    value = linear(tokens, *branches.value, relu=branches.act == "relu")
    mixed = dropout(value if branches.act == "relu" else value.tanh(), branches.rate)
    if branches.gate[0] is not None:
        mixed = mixed * dropout(linear(tokens, branches.gate[0], branches.gate[1]).sigmoid(), branches.rate)
    return exact_linear(mixed, weight, bias).T


def exact_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b for a handful of outputs, in the dtype of the weights also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        product = rows.to(weight.dtype) @ weight.T
        return product if bias is None else product + bias
