"""What encoders with a neural network share: backend and precision, fitting tiles, what a bag records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional as F

from mhim.config import ComponentConfig, fingerprint
from mhim.encoders.backends import Backend, Graph, Precision, Runner, TileGraph, choose, make_runner
from mhim.encoders.backends.probe import PROBES
from mhim.encoders.backends.runner import deviation
from mhim.encoders.contract import Encoder
from mhim.errors import ConfigError

Fit = Literal["resize", "crop"]
Filter = Literal["bilinear", "bicubic"]


class NetworkConfig(ComponentConfig):
    """Options of every encoder with a network."""

    backend: Backend = Field(default="auto", description="auto, torch, openvino or onnxruntime")
    precision: Precision = Field(
        default="auto", description="auto (float32, on openvino bfloat16), float32, bfloat16 or int8"
    )
    compile: bool = Field(default=False, description="torch only: torch.compile, slow to start")
    calibration: Path | None = Field(
        default=None, description="int8 needs it: .npy of 24 to 72 real tiles, (N, h, w, 3) uint8"
    )


class NetworkEncoder(Encoder):
    """An encoder whose features come from one graph, uint8 tiles in, features out.

    A subclass calls :meth:`_set_up` in its constructor.

    Attributes:
        input_px: side of the network's input, or None when any side does.
        fit, filter: how a tile of another side becomes one of ``input_px``.
    """

    class Config(NetworkConfig):
        """Options of every encoder with a network."""

    config: NetworkConfig
    input_px: int | None = None
    fit: Fit = "resize"
    filter: Filter = "bicubic"

    def _set_up(self, graph: Graph) -> None:
        """Decide backend and precision, and get ready to run ``graph``.

        Raises:
            ConfigError: the backend or precision cannot be had here, or the calibration tiles cannot be read.
        """
        self._choice = choose(self.name, self.config.backend, self.config.precision, self.device)
        self.backend, self.precision = self._choice
        if self.config.calibration is not None:
            graph.calibration = _calibration_tiles(self.config.calibration)
        elif self.precision == "int8":
            raise ConfigError(
                f"{self.name}: int8 is calibrated on real tiles; give some with --set encoder.calibration=tiles.npy"
            )
        self.graph = graph

    @cached_property
    def runner(self) -> Runner:
        """The graph on its backend; made when it is first needed."""
        return make_runner(self.graph, self._choice, self.device, self.config.compile)

    @cached_property
    def deviation(self) -> str:
        """How far backend and precision move the features from torch in float32; measured once, then cached."""
        return deviation(self.graph, self._choice, self.runner, self.input_px or self.tile_px, self.device)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 RGB -> (B, dim) float32.

        Raises:
            ConfigError: tiles that cannot be fitted to the network's input.
        """
        if self.input_px is not None:
            tiles = fit_tiles(tiles, self.input_px, self.fit, self.filter, self.name)
        return self.runner(tiles)

    def attributes(self) -> dict[str, Any]:
        """What a bag file records about the encoder, see ``mhim.bag.ATTRIBUTES``."""
        return {**super().attributes(), "encoder_licence": self.licence or "not stated"}


def make_graph(
    build: Any, weights_sha256: str, network: object, mean: Sequence[float], std: Sequence[float], dim: int
) -> Graph:
    """A graph of a network behind its normalisation.

    Args:
        build: () -> the network, (B, 3, h, w) normalised pixels -> (B, dim).
        weights_sha256: digest of the weight file.
        network: JSON-like value that tells this network from others with the same weights.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        dim: width of the features.
    """
    mean, std = [255 * value for value in mean], [255 * value for value in std]
    identity = fingerprint([weights_sha256, network, mean, std])
    return Graph(identity, lambda: TileGraph(build(), mean, std), dim)


def fit_tiles(tiles: NDArray[np.uint8], side_px: int, fit: Fit, kind: Filter, name: str) -> NDArray[np.uint8]:
    """Tiles brought to ``side_px``: scaled with antialiasing, or cut out of the middle; untouched where they fit.

    Args:
        tiles: (B, h, w, 3) uint8.
        side_px: wanted side.
        fit: how.
        kind: filter of the resize; equals Pillow's within 2 of 255.
        name: the encoder, for messages.

    Raises:
        ConfigError: tiles that are not square, or too small to be cut.
    """
    height, width = tiles.shape[1:3]
    if (height, width) == (side_px, side_px):
        return tiles
    if height != width:
        raise ConfigError(f"{name}: tiles of {width} x {height} px; square tiles are needed")
    if fit == "crop":
        if height < side_px:
            raise ConfigError(f"{name}: tiles of {height} px are too small; at least {side_px} px")
        start = (height - side_px) // 2
        return np.ascontiguousarray(tiles[:, start : start + side_px, start : start + side_px])
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    scaled = F.interpolate(pixels, size=(side_px, side_px), mode=kind, antialias=True, align_corners=False)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())


def _calibration_tiles(path: Path) -> NDArray[np.uint8]:
    try:
        tiles = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: calibration tiles cannot be read ({error})") from None
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
        raise ConfigError(f"{path}: calibration tiles must be an array (N, h, w, 3) of uint8")
    if len(tiles) < 3 * PROBES:
        raise ConfigError(f"{path}: {len(tiles)} calibration tiles; at least {3 * PROBES} are needed")
    return tiles
