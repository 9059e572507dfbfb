"""Dropout masks at random access: a hash of seed, row and column decides, at a few bits an element.

The mask of a row depends on the seed and the row's number alone, so it is the same in whatever chunks, order or
subset rows are computed, and again when they are computed a second time for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BITS = 16
_LANES = 8
_ONES = 0x0101010101010101
_SEEDS = 1 << 62


def draw_seed() -> int:
    """A seed from PyTorch's global generator of the CPU; no accelerator has to be waited for."""
    return int(torch.randint(_SEEDS, ()))


def realised(rate: float) -> float:
    """The rate that :func:`keep_mask` draws: the nearest multiple of 2^-16."""
    return round(rate * 2**_BITS) / 2**_BITS


def keep_mask(seed: int, rows: slice | Tensor, width: int, rate: float, device: torch.device) -> Tensor:
    """A boolean mask (n, width), each element True, independently, with probability 1 - rate.

    Eight elements share one 64-bit word of a counter-based generator (Steele et al., OOPSLA 2014). The bits of
    1 - rate, least first, steer a chain of ands and ors over the word's bits, which makes a biased coin of fair
    ones: two bits an element for a rate of 0.25, at most 16.

    Args:
        seed: below 2^62.
        rows: the rows' numbers: a slice with start and stop, or (n,) int64 on the device.
        width: elements a row.
        rate: in [0, 1), rounded to a multiple of 2^-16, see :func:`realised`.
        device: where the mask is made.
    """
    numbers = torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows
    keep = 2**_BITS - round(rate * 2**_BITS)
    if keep >= 2**_BITS:
        return torch.ones(len(numbers), width, dtype=torch.bool, device=device)
    bits = [bool(keep >> place & 1) for place in range(_BITS)]
    bits = bits[bits.index(True) :]
    per_row = -(-width // _LANES)
    counters = numbers[:, None] * per_row + torch.arange(per_row, device=device)
    lanes, words = torch.zeros_like(counters), counters
    for place, is_one in enumerate(bits):
        if place % _LANES == 0:
            words = _hash(counters, seed + place)
        lanes = lanes.bitwise_or_(words) if is_one else lanes.bitwise_and_(words)
        words.bitwise_right_shift_(1)
    return lanes.bitwise_and_(_ONES).view(torch.bool)[:, :width]


def _hash(counters: Tensor, seed: int) -> Tensor:
    """SplitMix64 of each counter, as int64: 64 well-mixed bits."""
    words = (counters + _signed(seed * 0x9E3779B97F4A7C15)).mul_(_signed(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, places: int) -> Tensor:
    """Logical shift to the right; int64 knows the arithmetic one alone."""
    return (words >> places).bitwise_and_((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """The low 64 bits as a signed number."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def dropout(x: Tensor, rate: float, seed: int | None = None) -> Tensor:
    """Each element of (n, width) zeroed with probability ``rate``, the others scaled up; of any seed of its own."""
    if not rate:
        return x
    return _Dropout.apply(x, rate, draw_seed() if seed is None else seed)


class _Dropout(torch.autograd.Function):
    """Forward and backward of :func:`dropout`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        """Keeps the mask, a byte an element."""
        keep = keep_mask(seed, slice(0, len(x)), x.shape[1], rate, x.device)
        ctx.save_for_backward(keep)
        ctx.factor = 1 / (1 - realised(rate))
        return (x * keep).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The same mask."""
        (keep,) = ctx.saved_tensors
        return (grads[0] * keep).mul_(ctx.factor), None, None
