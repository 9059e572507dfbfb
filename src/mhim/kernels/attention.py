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
    if _is_watched(queries, keys, values) or not has_fast_products(queries):
        return F.scaled_dot_product_attention(queries[None], keys[None], values[None], scale=1.0)[0]
    return _in_pieces(None, queries, keys, values)[0]


def attend_and_weigh(
    weights: Float[Tensor, "heads count"],
    queries: Float[Tensor, "heads count head_dim"],
    keys: Float[Tensor, "heads other head_dim"],
    values: Float[Tensor, "heads other head_dim"],
) -> tuple[Float[Tensor, "heads count head_dim"], Float[Tensor, "heads other"]]:
    """:func:`attend`, and the sum over queries of weight x softmax(q k^T): without gradient, in the weights' dtype."""
    if _is_watched(queries, keys, values) or not has_fast_products(queries):
        with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
            total = _in_pieces(weights, queries, keys, None)[1]
        return attend(queries, keys, values), total
    with torch.autocast(queries.device.type, enabled=False):
        return _in_pieces(weights, queries, keys, values)


def _is_watched(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _in_pieces(weights: Tensor | None, queries: Tensor, keys: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both products with softmax(q k^T), of which a piece is held; that without operand is left empty."""
    heads, count, dim = queries.shape
    total = queries.new_zeros(0) if weights is None else weights.new_zeros(heads, keys.shape[1])
    out = queries.new_empty(count, heads if values is not None else 0, dim).transpose(0, 1)
    for head in range(heads):
        turned = None if values is None else values[head].float().contiguous().T
        for place, share in _shares(queries[head], keys[head]):
            if turned is not None:
                out[head, place] = affine(share, turned)
            if weights is not None:
                total[head] += weights[head, place] @ share.to(weights.dtype)
    return out, total


def _shares(queries: Float[Tensor, "count dim"], keys: Float[Tensor, "other dim"]) -> Iterator[tuple[slice, Tensor]]:
    """softmax(q k^T) by pieces of its rows, in float32 at least: what is ranked must not be rounded."""
    exact = torch.promote_types(keys.dtype, torch.float32)
    keys, size = keys.to(exact).contiguous(), max(16, _NUMBERS // len(keys))
    for start in range(0, len(queries), size):
        place = slice(start, start + size)
        yield place, affine(queries[place].to(exact), keys).softmax(dim=-1)
