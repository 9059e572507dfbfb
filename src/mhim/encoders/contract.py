"""The contract of every encoder: tile pixels in, one frozen feature row per tile out."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mhim.config import ComponentConfig
from mhim.registry import Registry


class Encoder:
    """Base of every encoder. It is frozen: the same tile gives the same row, whatever is beside it.

    Attributes:
        dim: feature width D.
        tile_px, mpp: tile side and scale that suit it; a suggestion, not a check.
        transform: what is done to a tile before the network, in words.
        precision: arithmetic.
        revision: which version of the network and its weights.
        weights_sha256: digest of the weight file, or "none" without weights.

    Args:
        config: the subclass's own ``Config``.
        device: "cpu", "cuda", ...; encoders without a network ignore it.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    dim: int
    tile_px: int = 224
    mpp: float = 0.5
    transform: str = ""
    precision: str = "float32"
    revision: str = "1"
    weights_sha256: str = "none"

    def __init__(self, config: ComponentConfig, device: str = "cpu") -> None:
        self.config = config
        self.device = device

    @property
    def name(self) -> str:
        """Registered name."""
        return self.config.name

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch of tiles.

        Args:
            tiles: (B, h, w, 3) uint8 RGB.

        Returns:
            (B, dim) float32.
        """
        raise NotImplementedError

    def attributes(self) -> dict[str, Any]:
        """What a bag file records about the encoder, see ``mhim.bag.ATTRIBUTES``."""
        return {
            "encoder": self.name,
            "encoder_revision": self.revision,
            "encoder_weights_sha256": self.weights_sha256,
            "transform": self.transform,
            "precision": self.precision,
        }


encoders: Registry[Encoder] = Registry("encoder")
