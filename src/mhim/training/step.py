"""One optimisation step on one bag: the loop of training, the cost of ``compare`` and ``bench`` all take this one."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mhim.methods import Method, Step
from mhim.methods.contract import StepResult

Precision = Literal["float32", "bfloat16"]


def adam(method: Method, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam over what the method trains, fused into one pass where PyTorch has that for the device."""
    parameters = list(method.trainable())
    fused = all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


class BagStep:
    """Steps of a method with its optimiser.

    Args:
        method: on its device, in training mode.
        optimiser: of the method's trainable parameters.
        precision: of the matrix products: float32, or bfloat16 by autocast with weights, optimiser and what is
            summed over a bag in float32.
    """

    def __init__(self, method: Method, optimiser: torch.optim.Optimizer, precision: Precision = "float32") -> None:
        self.method = method
        self.optimiser = optimiser
        self.precision = precision

    def loss(
        self, features: Float[Tensor, "instances in_dim"], label: Int[Tensor, "*target"], step: Step
    ) -> StepResult:
        """Loss terms of one bag on the device; nothing moves."""
        device = features.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.method.step(features, label, step)

    def update(self, loss: Float[Tensor, ""], step: Step) -> None:
        """Move the parameters down the loss, then what follows them (an EMA teacher)."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.method.after_step(step)
