"""A depth-wise convolution over an image whose channels stand last, with a gradient that stays in the cache."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def depthwise(
    image: Float[Tensor, "height width dim"],
    kernel: Float[Tensor, "dim 1 size size"],
    bias: Float[Tensor, " dim"],
    with_image: bool = False,
) -> Float[Tensor, "height width dim"]:
    """Each channel convolved with its own (size, size) kernel, zeros beyond the edges; an odd size.

    The plain form is ``F.conv2d`` with one group a channel, which runs on every device; on the CPU its gradient of
    the kernel is four times slower than sums of products row by row. ``with_image`` adds the image, on the CPU by a
    1 in the middle of the kernel.
    """
    if image.device.type != "cpu":
        return _convolve(image, kernel, bias) + image if with_image else _convolve(image, kernel, bias)
    if with_image:
        middle = F.pad(kernel.new_ones(1, 1, 1, 1), [kernel.shape[-1] // 2] * 4)
        kernel = kernel + middle
    with torch.autocast("cpu", enabled=False):
        return _Depthwise.apply(image.to(kernel.dtype), kernel, bias)


def _convolve(image: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    planes = image[None].permute(0, 3, 1, 2)
    return F.conv2d(planes, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel)).permute(0, 2, 3, 1)[0]


def _of_kernel(image: Tensor, grad: Tensor, size: int) -> Float[Tensor, "dim 1 size size"]:
    """Sum over the pixels of gradient x shifted image, for every shift."""
    height, width, dim = grad.shape
    padded = F.pad(image, (0, 0, *[size // 2] * 4))
    total = image.new_zeros(size, size, dim)
    for row in range(height):
        for down in range(size):
            line = padded[row + down]
            shifted = line.as_strided((size, width, dim), (dim, dim, 1), line.storage_offset())
            total[down] += (shifted * grad[row]).sum(dim=1)
    return total.permute(2, 0, 1)[:, None]


class _Depthwise(torch.autograd.Function):
    """Forward and backward of :func:`depthwise`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """See :func:`depthwise`."""
        ctx.save_for_backward(image, kernel)
        return _convolve(image, kernel, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image's gradient is the convolution with the kernel turned round."""
        image, kernel = ctx.saved_tensors
        (grad,) = grads
        of_image = _convolve(grad, kernel.flip(-1, -2), None)
        return of_image, _of_kernel(image, grad, kernel.shape[-1]), grad.sum(dim=(0, 1))
