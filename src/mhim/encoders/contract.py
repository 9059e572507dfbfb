"""The contract of every encoder: tile pixels in, one frozen feature row per tile out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mhim.config import ComponentConfig
from mhim.registry import Registry


class Encoder:
    """Base of every encoder. It is frozen: the same tile gives the same row, whatever is beside it.

    ``encode`` may be called from several threads at once.

    Attributes:
        dim: feature width D.
        tile_px, mpp: tile side and scale that suit it; a suggestion, not a check.
        transform: what is done to a tile before the network, in words.
        backend: the runtime that runs it: numpy, torch, openvino or onnxruntime.
        precision: arithmetic: float32, bfloat16 or int8.
        deviation: how far backend and precision move the features from torch in float32, in words.
        revision: which version of the network and its weights.
        weights_sha256: digest of the weight file, or "none" without weights.
        licence: of the weights; "" without weights.

    Args:
        config: the subclass's own ``Config``.
        device: "cpu", "cuda", ...; encoders without a network ignore it.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    dim: int
    tile_px: int = 224
    mpp: float = 0.5
    transform: str = ""
    backend: str = "torch"
    precision: str = "float32"
    deviation: str = "none"
    revision: str = "1"
    weights_sha256: str = "none"
    licence: str = ""

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
            "backend": self.backend,
            "precision": self.precision,
            "deviation": self.deviation,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the features: the attributes without ``deviation``, which is a measurement of this machine."""
        return {key: value for key, value in self.attributes().items() if key != "deviation"}


class EncoderRegistry(Registry[Encoder]):
    """Encoders by name; ``PREFIX:REST`` names one encoder of a family, such as ``timm:NAME`` or ``onnx:FILE``."""

    def __init__(self) -> None:
        super().__init__("encoder")
        self._families: dict[str, type[Encoder]] = {}

    @property
    def families(self) -> dict[str, type[Encoder]]:
        """Prefix -> class of the encoders ``PREFIX:REST``."""
        return dict(self._families)

    def register_family(self, prefix: str) -> Callable[[type[Encoder]], type[Encoder]]:
        """Class decorator: the class stands for every name ``prefix:REST``; it reads REST from ``config.name``."""

        def add(cls: type[Encoder]) -> type[Encoder]:
            self._families[prefix] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[Encoder]:
        prefix, colon, rest = name.partition(":")
        if colon and rest and prefix in self._families:
            return self._families[prefix]
        return super().__getitem__(name)


encoders = EncoderRegistry()
