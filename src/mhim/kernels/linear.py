"""A linear layer whose products take the fast library in both directions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.kernels.gemm import add_outer, affine


def linear(
    x: Float[Tensor, "rows in_dim"],
    weight: Float[Tensor, "dim in_dim"],
    bias: Float[Tensor, " dim"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "rows dim"]:
    """The product x W^T + b, with ReLU if asked; the plain form is ``F.linear``. Autocast's dtype is respected."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        x, weight = x.to(low), weight.to(low)
        bias = None if bias is None else bias.to(low)
    return _Linear.apply(x, weight, bias, relu)


class _Linear(torch.autograd.Function):
    """Forward and backward of :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """See :func:`linear`."""
        ctx.has_bias = bias is not None
        with torch.autocast(x.device.type, enabled=False):
            out = affine(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what asks for one."""
        x, weight, out = ctx.saved_tensors
        grad = grads[0] if out is None else torch.ops.aten.threshold_backward(grads[0], out, 0)
        of_x = of_weight = of_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_x = affine(grad, weight.T)
            if ctx.needs_input_grad[1]:
                of_weight = torch.zeros_like(weight, dtype=grad.dtype)
                add_outer(of_weight, grad, x)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                of_bias = grad.sum(dim=0)
        return of_x, of_weight, of_bias, None
