"""One optimisation step, on one bag or several; the loop of training, the cost of ``compare`` and ``bench`` take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mhim.kernels import Bags
from mhim.methods import Method, Step
from mhim.methods.contract import StepResult

Precision = Literal["float32", "bfloat16"]

PACKED_ROWS = {"cpu": 16384}
PACKED_ROWS_ACCELERATOR = 262144
"""Most rows of several bags that are computed together."""


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

    def take(
        self, bags: Sequence[Float[Tensor, "_ in_dim"]], labels: Sequence[Int[Tensor, "*target"]], step: Step
    ) -> list[StepResult]:
        """Move the parameters down the mean loss of some bags, then what follows them (an EMA teacher).

        Bags go through in runs (see :func:`runs`), whose gradients add up: it comes to the same, and memory is
        that of the largest run.

        Args:
            bags: (N, D) features on the device.
            labels: a class index () each, or the target of another task, on the device.
            step: where training stands.

        Returns:
            Loss terms of each bag before the update.
        """
        self.optimiser.zero_grad(set_to_none=True)
        results = list[StepResult]()
        kind = bags[0].device.type
        for run in runs([len(bag) for bag in bags], PACKED_ROWS.get(kind, PACKED_ROWS_ACCELERATOR)):
            with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
                results += (part := self._losses(bags[run], labels[run], step))
            (torch.stack([result.loss for result in part]).sum() / len(bags)).backward()
        self.optimiser.step()
        self.method.after_step(step)
        return results

    def _losses(self, bags: Sequence[Tensor], labels: Sequence[Tensor], step: Step) -> list[StepResult]:
        if len(bags) == 1:
            return [self.method.step(bags[0], labels[0], step)]
        return self.method.step_bags(Bags(bags), labels, step)


def runs(sizes: Sequence[int], limit: int) -> list[slice]:
    """Bags in a row that are computed together: as many as have ``limit`` rows; a larger bag is alone.

    Args:
        sizes: rows of each bag.
        limit: most rows of several bags.
    """
    found, start, rows = list[slice](), 0, 0
    for at, size in enumerate(sizes):
        if at > start and rows + size > limit:
            found.append(slice(start, at))
            start, rows = at, 0
        rows += size
    return [*found, slice(start, len(sizes))]
