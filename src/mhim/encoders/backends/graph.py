"""The graph that every runtime runs: uint8 tiles to features, the normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


class TileGraph(nn.Module):
    """A network behind its normalisation.

    Args:
        network: (B, 3, h, w) float32 -> (B, D).
        mean, deviation: per channel, in the units of a pixel, 0 to 255.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 -> (B, D)."""
        x = tiles.permute(0, 3, 1, 2).float()  # channels last by construction
        return self.network((x - self.mean) / self.deviation)


@dataclass
class Graph:
    """A graph that is built when it is first needed, and what identifies it.

    Attributes:
        identity: digest of weights, shape of the network and normalisation.
        build: makes the module, in evaluation mode, on the CPU.
        dim: width D of the features.
        is_transformer: whether int8 should treat it as one.
        calibration: tiles for int8, (N, h, w, 3) uint8, or None.
    """

    identity: str
    build: Callable[[], TileGraph]
    dim: int
    is_transformer: bool = False
    calibration: NDArray[np.uint8] | None = field(default=None, repr=False)

    @cached_property
    def module(self) -> TileGraph:
        """The module itself."""
        return self.build().eval().requires_grad_(False)
