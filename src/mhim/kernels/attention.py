"""Products with softmax(q k^T) that are only looked at: no gradient, in the memory of one piece of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mhim.kernels.gemm import affine, has_fast_products

_NUMBERS = 1 << 20
"""In the largest temporary."""


def attend(
    queries: Float[Tensor, "heads count head_dim"],
    keys: Float[Tensor, "heads other head_dim"],
    values: Float[Tensor, "heads other head_dim"],
) -> Float[Tensor, "heads count head_dim"]:
    """softmax(q k^T) v with queries that are already scaled; the plain form is ``F.scaled_dot_product_attention``.

    That is what runs where a gradient is wanted or there are no faster products than its own.
    """
    is_watched = torch.is_grad_enabled() and any(part.requires_grad for part in (queries, keys, values))
    if is_watched or not has_fast_products(queries):
        return F.scaled_dot_product_attention(queries[None], keys[None], values[None], scale=1.0)[0]
    out = queries.new_empty(queries.shape[1], len(queries), queries.shape[2]).transpose(0, 1)
    for head, value in enumerate(values):
        turned = value.T.float().contiguous()
        for place, share in _shares(queries[head], keys[head]):
            out[head, place] = affine(share, turned)
    return out


def weighed_shares(
    weights: Float[Tensor, "heads count"],
    queries: Float[Tensor, "heads count head_dim"],
    keys: Float[Tensor, "heads other head_dim"],
) -> Float[Tensor, "heads other"]:
    """The sum over queries of weight x softmax(q k^T), without gradient, in the weights' dtype."""
    total = weights.new_zeros(len(weights), keys.shape[1])
    for head, weight in enumerate(weights):
        for place, share in _shares(queries[head], keys[head]):
            total[head] += weight[place] @ share.to(weight.dtype)
    return total


def _shares(queries: Float[Tensor, "count dim"], keys: Float[Tensor, "other dim"]) -> Iterator[tuple[slice, Tensor]]:
    """softmax(q k^T) by pieces of its rows, in float32 at least: what is ranked must not be rounded."""
    exact = torch.promote_types(keys.dtype, torch.float32)
    keys, size = keys.to(exact).contiguous(), max(16, _NUMBERS // len(keys))
    for start in range(0, len(queries), size):
        place = slice(start, start + size)
        yield place, affine(queries[place].to(exact), keys).softmax(dim=-1)
