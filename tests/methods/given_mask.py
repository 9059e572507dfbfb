"""A mask strategy that keeps what it is told, for steps whose kept instances are known from elsewhere.

Not registered: ``method.strategy = Given(Given.Config(keep=...))`` puts it in the place of the configured one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mhim.config import ComponentConfig
from mhim.masks import MaskSelection, MaskStrategy


class Given(MaskStrategy):
    """Step t of T keeps exactly ``keep[t]``, whatever the salience; the others count as salient."""

    class Config(ComponentConfig):
        """The kept instances of every step."""

        keep: tuple[tuple[int, ...], ...] = Field(min_length=1, description="kept instances, one list a step")

    config: Config

    def select(
        self, salience: Float[Tensor, "head instances"], progress: float, generator: torch.Generator
    ) -> MaskSelection:
        index = torch.tensor(self.config.keep[round(progress * len(self.config.keep))], device=salience.device)
        high = torch.ones(salience.shape[1], dtype=torch.bool, device=salience.device)
        high[index] = False
        return MaskSelection(index.sort().values, high, torch.zeros_like(high), torch.zeros_like(high))
