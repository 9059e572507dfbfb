"""Activations of the fused paths: applied in place, with their derivative from the result."""

from __future__ import annotations

import torch
from torch import Tensor

FUSED = ("relu", "tanh")
"""Names whose derivative needs the result alone."""


def apply_(name: str, values: Tensor) -> Tensor:
    """The activation, in place."""
    return values.relu_() if name == "relu" else values.tanh_()


def backward(name: str, grad: Tensor, result: Tensor) -> Tensor:
    """Gradient before the activation from the one behind it and the activation's result."""
    if name == "relu":
        return torch.ops.aten.threshold_backward(grad, result, 0)
    return torch.ops.aten.tanh_backward(grad, result)
