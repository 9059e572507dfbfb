"""Any ONNX file, as ``onnx:FILE``: one input, tiles; first output, one row per tile."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import ComponentConfig
from mhim.encoders.backends.choice import Backend
from mhim.encoders.cards import IMAGENET
from mhim.encoders.contract import Encoder, encoders
from mhim.encoders.network import Filter, fit_tiles
from mhim.encoders.published import Triple, describe
from mhim.encoders.weight_files import file_digest
from mhim.errors import ConfigError

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@encoders.register_family("onnx")
class OnnxFileEncoder(Encoder):
    """An ONNX file run by ONNX Runtime in float32.

    An input of uint8 gets the pixels as they are; one of float32 gets (x / 255 - mean) / std. Channels come
    first or last, wherever the file has a 3.

    Raises:
        ConfigError: onnxruntime is not installed, no such file, or an input or output of another kind.
    """

    class Config(ComponentConfig):
        """Options: what the file does not say."""

        backend: Backend = Field(default="auto", description="auto or onnxruntime")
        input_px: int | None = Field(default=None, ge=1, description="input side; default: the file's, if it is fixed")
        filter: Filter = Field(default="bicubic", description="filter of the resize to the input side")
        mean: Triple = Field(default=IMAGENET[0], description="per channel, of pixels in [0, 1]")
        std: Triple = Field(default=IMAGENET[1], description="per channel, of pixels in [0, 1]")
        licence: str = Field(default="", description="of the weights, to be recorded")

    config: Config
    backend = "onnxruntime"

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        path = Path(config.name.partition(":")[2])
        self.session = _open(path, config)
        (tiles,) = self.session.get_inputs()
        shape, kind = list(tiles.shape), _TYPES.get(tiles.type)
        if kind is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ConfigError(f"{path}: its input is {tiles.type} {shape}; (batch, 3, h, w) or (batch, h, w, 3) needed")
        self.kind, self.channels_last = kind, shape[3] == 3
        fixed = shape[1] if self.channels_last else shape[2]
        self.input_px = config.input_px or (fixed if isinstance(fixed, int) else None)
        self.tile_px = self.input_px or 224
        self.weights_sha256 = file_digest(path)
        self.revision, self.licence = f"{path.name}@{self.weights_sha256[:12]}", config.licence
        said = describe(self.input_px, "resize", config.filter, config.mean, config.std)
        self.transform = said if kind is np.float32 else "none; the file takes pixels"
        side = self.tile_px
        probe = self._run(np.zeros((1, side, side, 3), np.uint8))
        if probe.ndim != 2:
            raise ConfigError(f"{path}: its first output is {probe.shape} for one tile, not one row")
        self.dim = probe.shape[1]

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 RGB -> (B, dim) float32.

        Raises:
            ConfigError: tiles that cannot be fitted to the file's input.
        """
        if self.input_px is not None:
            tiles = fit_tiles(tiles, self.input_px, "resize", self.config.filter, self.name)
        return self._run(tiles)

    def _run(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        from mhim.encoders.backends.onnx_backend import run_session

        batch: NDArray[Any] = tiles
        if self.kind is np.float32:
            mean, std = (np.array(values, np.float32) for values in (self.config.mean, self.config.std))
            batch = (tiles.astype(np.float32) / 255 - mean) / std
        if not self.channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return run_session(self.session, batch)


def _open(path: Path, config: Any) -> Any:
    from mhim.encoders.backends.onnx_backend import open_session

    if config.backend not in ("auto", "onnxruntime"):
        raise ConfigError(f"{config.name}: an ONNX file runs with --backend onnxruntime")
    if find_spec("onnxruntime") is None:
        raise ConfigError(f"{config.name}: onnxruntime is not installed; pip install 'mhim[onnx]'")
    if not path.is_file():
        raise ConfigError(f"{path}: no such ONNX file")
    try:
        return open_session(path)
    except import_module("onnxruntime").capi.onnxruntime_pybind11_state.Fail as error:
        raise ConfigError(f"{path}: cannot be read as ONNX ({error})") from None
