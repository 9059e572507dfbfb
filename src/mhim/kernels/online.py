"""What a bag is reduced to, over rows that come chunk by chunk: softmax-weighted sums and largest scores."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class OnlineSoftmax:
    """softmax(scores) @ values over all rows that were added (Milakov and Gimelshein, 2018).

    Args:
        like: (..., B, dim) what the result looks like; its dtype is that of the sums.

    Attributes:
        top: (..., B, 1) the largest score so far.
        total: (..., B, 1) the sum of exp(score - top) so far.
    """

    def __init__(self, like: Float[Tensor, "*batch branch dim"]) -> None:
        self.top = torch.full_like(like[..., :1], -torch.inf)
        self.total = torch.zeros_like(self.top)
        self._sum = torch.zeros_like(like)

    def add(self, scores: Float[Tensor, "*batch branch n"], values: Float[Tensor, "*batch n dim"]) -> None:
        """A chunk of n rows."""
        top = torch.maximum(self.top, scores.amax(dim=-1, keepdim=True))
        shrink, share = (self.top - top).exp(), (scores - top).exp()
        self.total = self.total * shrink + share.sum(dim=-1, keepdim=True)
        self._sum = self._sum * shrink + share @ values
        self.top = top

    @property
    def pooled(self) -> Float[Tensor, "*batch branch dim"]:
        """The weighted sum of what was added."""
        return self._sum / self.total


class OnlineMax:
    """The row with the largest score in each column, over rows that come chunk by chunk; the first one of equals.

    Attributes:
        scores: (C,) the largest so far.
        positions: (C,) int64 where it was.
        rows: (C, dim) its row.
    """

    scores: Float[Tensor, " classes"]
    positions: Int[Tensor, " classes"]
    rows: Float[Tensor, "classes dim"]

    def __init__(self) -> None:
        self._count = 0

    def add(self, scores: Float[Tensor, "n classes"], rows: Float[Tensor, "n dim"]) -> None:
        """A chunk of n rows."""
        top, at = scores.max(dim=0)
        found = top, at + self._count, rows[at]
        if self._count:
            wins = top > self.scores
            best = self.scores, self.positions, self.rows
            found = (
                torch.where(wins if new.ndim == 1 else wins[:, None], new, old)
                for new, old in zip(found, best, strict=True)
            )
        self.scores, self.positions, self.rows = found
        self._count += len(scores)
