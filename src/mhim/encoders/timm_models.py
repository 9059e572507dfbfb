"""Any model of timm, as ``timm:NAME``: needs the packages timm and torchvision, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mhim.encoders.contract import encoders
from mhim.encoders.network import Filter, NetworkEncoder, make_graph
from mhim.encoders.published import HubConfig, describe
from mhim.encoders.weight_files import file_digest, find_weights, read_tensors
from mhim.errors import CheckpointError, ConfigError

_FILES = ("model.safetensors", "pytorch_model.bin")


@encoders.register_family("timm")
class TimmEncoder(NetworkEncoder):
    """A model of timm without its classifier, with timm's own input side, normalisation and pooling.

    Raises:
        ConfigError: timm is not installed, has no such model, or its weights are not on this machine.
        CheckpointError: the weights do not fit, or the model does not give one row per tile.
    """

    class Config(HubConfig):
        """Options of an encoder whose weights are on the hub."""

    config: Config

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        model_name = config.name.partition(":")[2]
        path, data = _weights_of(model_name, config)
        self.weights_sha256 = file_digest(path)
        self.revision = f"{model_name}@{config.revision or self.weights_sha256[:12]}"
        self.input_px = self.tile_px = int(data["input_size"][-1])
        self.filter = cast("Filter", data["interpolation"] if data["interpolation"] == "bilinear" else "bicubic")
        self.licence = str(data.get("license") or "")
        self.transform = describe(self.input_px, self.fit, self.filter, data["mean"], data["std"])
        network = _load(model_name, path)
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(1, 3, self.input_px, self.input_px)).shape)
        if len(shape) != 2:
            raise CheckpointError(f"{config.name}: gives {shape} for one tile, not one row; it has no pooling")
        self.dim = shape[1]
        graph = make_graph(lambda: network, self.weights_sha256, model_name, data["mean"], data["std"], self.dim)
        graph.is_transformer = "vit" in model_name or "swin" in model_name
        self._set_up(graph)


def _timm() -> Any:
    if find_spec("timm") is None:
        raise ConfigError("timm is not installed; pip install 'mhim[timm]' (it brings torchvision)")
    try:
        return import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"timm cannot be imported ({error}); torch and torchvision must be of one release") from None


def _weights_of(model_name: str, config: HubConfig) -> tuple[Path, dict[str, Any]]:
    """The weight file, and timm's facts about the model."""
    timm = _timm()
    if not timm.is_model(model_name):
        raise ConfigError(f"{config.name}: timm {timm.__version__} has no model '{model_name}'")
    facts = timm.get_pretrained_cfg(model_name).to_dict()
    hub = str(facts.get("hf_hub_id") or "")
    if hub.endswith("/"):
        hub += f"{model_name}" if "." in model_name else f"{model_name}.{facts.get('tag') or ''}".rstrip(".")
    path = find_weights(config.name, config.weights, hub, _FILES, download=config.download, revision=config.revision)
    return path, facts


def _load(model_name: str, path: Path) -> nn.Module:
    """The model with the weights in a file; timm's own renaming of old files applies, no code in them runs."""
    overlay = {"state_dict": read_tensors(path), "hf_hub_id": None, "url": None, "file": None}
    try:
        model = _timm().create_model(model_name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit timm's {model_name}: {reason}") from None
    return model.eval()
