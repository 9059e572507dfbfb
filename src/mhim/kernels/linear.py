"""A linear layer whose products take the fast library in both directions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.kernels.gemm import add_outer, affine


def linear(
    x: Float[Tensor, "rows in_dim"], weight: Float[Tensor, "dim in_dim"], bias: Float[Tensor, " dim"] | None = None
) -> Float[Tensor, "rows dim"]:
    """The product x W^T + b; the plain form is ``F.linear``. Under autocast it computes in autocast's dtype."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        x, weight = x.to(low), weight.to(low)
        bias = None if bias is None else bias.to(low)
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Forward and backward of :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :func:`linear`."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        with torch.autocast(x.device.type, enabled=False):
            return affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what asks for one."""
        x, weight = ctx.saved_tensors
        (grad,) = grads
        of_x = of_weight = of_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_x = affine(grad, weight.T)
            if ctx.needs_input_grad[1]:
                of_weight = torch.zeros_like(weight, dtype=grad.dtype)
                add_outer(of_weight, grad, x)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                of_bias = grad.sum(dim=0)
        return of_x, of_weight, of_bias
