"""Matrix products through oneDNN where PyTorch would take a slower library; a guarded private call.

``torch.ops.mkldnn._linear_pointwise`` has no gradient and no promise to stay. It is tried once against
``F.linear``; where it is missing, fails or differs, everything goes through ``F.linear``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_DTYPES = (torch.float32, torch.bfloat16)
FEWEST_ROWS = 64
"""Below this many rows (or columns) the call saves little, and such shapes would push out others that it remembers."""
_FEWEST_ENTRY_ROWS = 96
"""Of a batch's entries, below which calls for each cost more than they save."""
_OUTER_ROWS = 2048
"""Rows that are summed away at once: a transposed operand that leaves the cache is copied first."""


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """The private fused linear layer, or None where it cannot be trusted."""
    try:
        call = torch.ops.mkldnn._linear_pointwise.default
        generator = torch.Generator().manual_seed(0)
        x, w, b = (torch.randn(size, generator=generator) for size in ((32, 24), (8, 24), (8,)))
        agrees = torch.allclose(call(x, w, b, "relu", [], ""), F.linear(x, w, b).relu(), atol=1e-5)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return call if agrees else None


def has_fast_products(x: Tensor) -> bool:
    """Whether :func:`affine` of such a tensor takes the fast library."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and onednn_linear() is not None


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """X W^T + b, then ReLU if asked; no gradient.

    Args:
        x: (N, in) of any device; float32 and bfloat16 on the CPU take oneDNN.
        weight: (out, in) of the same dtype; may be a transposed view.
        bias: (out,) or None.
        relu: apply ReLU in the same pass.
    """
    call = onednn_linear() if has_fast_products(x) and len(x) >= FEWEST_ROWS else None
    if call is not None:
        if not (weight.is_contiguous() or weight.T.is_contiguous()):  # a layout for which it has no fast product
            weight = weight.contiguous()
        return call(x, weight, bias, "relu" if relu else "none", [], "")
    out = F.linear(x, weight, bias)
    return out.relu_() if relu else out


def add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left^T right, rows (N, out) and (N, in) summed away; the total may be of higher precision."""
    if not has_fast_products(left) or len(left) < FEWEST_ROWS:
        total += left.T @ right
        return
    for rows, others in zip(left.split(_OUTER_ROWS), right.split(_OUTER_ROWS), strict=True):
        total += affine(rows.T, others.T)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices, or of batches of them; no gradient."""
    is_fast = left.ndim == 2 and right.shape[-1] >= FEWEST_ROWS and has_fast_products(left)
    return affine(left, right.mT) if is_fast else left @ right


def by_entry(
    function: Callable[..., tuple[Tensor, ...]], *batches: Tensor | Sequence[Tensor]
) -> list[tuple[Tensor, ...]]:
    """A function of matrices for each entry of the batches, in their order.

    PyTorch gives a batch of products to the slower library, and passes over whole batches leave the cache. Where
    there is no faster one, or the matrices are small, the function gets the batches as they are, as one entry.

    Args:
        function: of one entry of each.
        batches: the first a tensor; sequences hold what an earlier call gave for each entry.
    """
    first = batches[0]
    assert isinstance(first, Tensor)
    if _is_one_entry(first):
        return [function(*(each if isinstance(each, Tensor) else each[0] for each in batches))]
    return [function(*entries) for entries in zip(*batches, strict=True)]


def one_by_one(function: Callable[..., tuple[Tensor, ...]], *batches: Tensor) -> tuple[Tensor, ...]:
    """See :func:`by_entry`, results stacked."""
    results = by_entry(function, *batches)
    return results[0] if _is_one_entry(batches[0]) else tuple(map(torch.stack, zip(*results, strict=True)))


def _is_one_entry(batch: Tensor) -> bool:
    return not has_fast_products(batch) or batch.shape[-2] < _FEWEST_ENTRY_ROWS
