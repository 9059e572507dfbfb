"""A depth-wise convolution along a sequence as products with banded matrices."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 64


def convolve(
    values: Float[Tensor, "heads count dim"], filters: Float[Tensor, "heads taps"]
) -> Float[Tensor, "heads count dim"]:
    """out[h, i] = sum_j filters[h, j] values[h, i + j - taps // 2], zeros beyond the ends; an odd number of taps.

    Blocks of 64 outputs are one product with a banded matrix (64, 64 + taps - 1): more multiplications than a
    convolution, at the speed of a matrix product. The plain form is ``F.conv2d`` with one group a head.
    """
    return _Convolve.apply(values, filters)


def _banded(filters: Tensor) -> Tensor:
    """(heads, block, block + taps - 1): row i holds the filter from column i on."""
    heads, taps = filters.shape
    width = _BLOCK + taps - 1
    band = filters.new_zeros(heads, _BLOCK, width)
    band.as_strided((heads, _BLOCK, taps), (_BLOCK * width, width + 1, 1)).copy_(filters[:, None])
    return band


def _windows(values: Tensor, taps: int) -> Tensor:
    """(heads, blocks, block + taps - 1, dim): overlapping views of the zero-padded values."""
    heads, count, dim = values.shape
    blocks = -(-count // _BLOCK)
    padded = F.pad(values, (0, 0, taps // 2, taps // 2 + blocks * _BLOCK - count))
    step, row, one = padded.stride()
    return padded.as_strided((heads, blocks, _BLOCK + taps - 1, dim), (step, _BLOCK * row, row, one))


def _apply(values: Tensor, filters: Tensor) -> Tensor:
    out = _banded(filters)[:, None] @ _windows(values, filters.shape[1])
    return out.flatten(1, 2)[:, : values.shape[1]]


class _Convolve(torch.autograd.Function):
    """Forward and backward of :func:`convolve`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, filters: Tensor) -> Tensor:
        """See :func:`convolve`."""
        ctx.save_for_backward(values, filters)
        return _apply(values, filters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The values' gradient is the convolution with the filter turned round; the filter's, sums of diagonals."""
        values, filters = ctx.saved_tensors
        (grad,) = grads
        heads, taps = filters.shape
        of_values = _apply(grad, filters.flip(1)) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_values, None
        windows = _windows(values, taps)
        blocks, width = windows.shape[1], windows.shape[2]
        rows = F.pad(grad, (0, 0, 0, blocks * _BLOCK - grad.shape[1])).unflatten(1, (blocks, _BLOCK))
        band = (rows @ windows.mT).sum(dim=1)
        diagonals = band.as_strided((heads, _BLOCK, taps), (_BLOCK * width, width + 1, 1))
        return of_values, diagonals.sum(dim=1)
