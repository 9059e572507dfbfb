"""The contract of a mask strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhim.config import ComponentConfig
from mhim.registry import Registry


@dataclass(frozen=True)
class MaskSelection:
    """What a strategy decided for one bag of N instances.

    Attributes:
        keep_index: (K,) int64, ascending, at least one: what the student sees.
        high: (N,) bool, masked because salient (the easy instances).
        low: (N,) bool, masked because of low salience.
        random: (N,) bool, masked by chance. An instance may be in several sets.
    """

    keep_index: Int[Tensor, " kept"]
    high: Bool[Tensor, " instances"]
    low: Bool[Tensor, " instances"]
    random: Bool[Tensor, " instances"]

    @property
    def kept_share(self) -> float:
        """Share of the bag that the student sees."""
        return len(self.keep_index) / len(self.high)


class MaskStrategy:
    """Base of every strategy.

    Args:
        config: the subclass's own ``Config``.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def select(
        self, salience: Float[Tensor, "head instances"], progress: float, generator: torch.Generator
    ) -> MaskSelection:
        """Choose what the student sees.

        Args:
            salience: (head, N) the teacher's scores.
            progress: share of all training steps that is done, in [0, 1).
            generator: source of all randomness, on the CPU.
        """
        raise NotImplementedError


masks: Registry[MaskStrategy] = Registry("mask")
