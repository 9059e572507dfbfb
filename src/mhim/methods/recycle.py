"""The global recycle network of MHIM v2: dropped instances become a few tokens (Tang et al., IJCV 2025)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhim.models.contract import MILModel, initialise

KeptOrder = Literal["ascending", "drawn"]


class Recycler(nn.Module):
    """k tokens from any number of instances, by cross-attention of k global queries.

    z = W_o concat_h softmax(q_h k_h^T / sqrt(head_dim)) v_h + b_o, with queries from LN(q), keys and values
    from LN(x) by projections without bias, one LayerNorm for both, no residual (spec section 6.3). The query
    is not trained: it follows z from step to step, see :meth:`follow`. Everything else is trained with the
    student, and nothing of it is deployed.

    Args:
        dim: token width D.
        tokens: number of queries k.
        heads: attention heads, published 8.
        head_dim: width of a head, published 64.
        dropout: on the attention and on the output, published 0.1.
    """

    def __init__(self, dim: int, tokens: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)
        initialise(self)
        bound = math.sqrt(6 / (3 * 256 + dim))
        self.query = nn.Parameter(torch.empty(tokens, dim).uniform_(-bound, bound), requires_grad=False)

    def forward(self, rest: Float[Tensor, "rest dim"]) -> Float[Tensor, "tokens dim"]:
        """The instances (N, D), at least one, condensed to k tokens z (k, D). Changes no state."""
        queries = self._split(self.to_query(self.norm(self.query)))
        keys, values = map(self._split, self.to_key_value(self.norm(rest)).chunk(2, dim=-1))
        attention = (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(dim=-1)
        mixed = self.dropout(attention) @ values
        return self.dropout(self.to_out(mixed.transpose(0, 1).flatten(1)))

    @torch.no_grad()
    def follow(self, fresh: Float[Tensor, "tokens dim"], momentum: float) -> None:
        """Move the query, q <- m q + (1 - m) z, after the optimiser's step, with the z of that step."""
        self.query.lerp_(fresh.to(self.query), 1 - momentum)

    def _split(self, tokens: Float[Tensor, "count inner"]) -> Float[Tensor, "heads count head_dim"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(0, 1)


def split_kept(
    count: int, keep_ratio: float, order: KeptOrder, generator: torch.Generator
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " rest"]]:
    """Which of L instances stay as they are, and which are recycled; drawn at random.

    floor(L keep_ratio) stay, at least one (the published program may keep none of a tiny bag).

    Args:
        count: L, at least one.
        keep_ratio: share that stays, in (0, 1].
        order: "ascending" positions, or "drawn" as the published program leaves them (a random permutation,
            which mixes the neighbourhoods that TransMIL's position encoding sees).
        generator: CPU generator; one draw of L uniform numbers.

    Returns:
        (K,) and (L - K,) int64 positions on the CPU.
    """
    drawn = torch.rand(count, generator=generator).argsort()
    kept = max(1, int(count * keep_ratio))
    if order == "drawn":
        return drawn[:kept], drawn[kept:]
    return drawn[:kept].sort().values, drawn[kept:].sort().values


@torch.no_grad()
def token_width(model: MILModel) -> int:
    """Width D of a model's tokens, asked of the model itself; its mode and the random numbers stay as they are."""
    was_training = model.training
    model.eval()
    reference = next(model.parameters())
    width = model.project(torch.zeros(1, model.in_dim, dtype=reference.dtype, device=reference.device)).shape[1]
    model.train(was_training)
    return width
