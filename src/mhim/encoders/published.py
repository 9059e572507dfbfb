"""Published pathology encoders under the names that users know, and vision transformers of one's own.

The networks are plain torch; the files are the authors' own, from a local path or the hub. Nothing is fetched
unless asked (``download``).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import nn

from mhim.encoders.cards import CARDS, IMAGENET, Card
from mhim.encoders.contract import encoders
from mhim.encoders.network import NetworkConfig, NetworkEncoder, make_graph
from mhim.encoders.resnet import ResNet50Stage3, is_unused
from mhim.encoders.swin import SwinCTransPath
from mhim.encoders.swin import is_unused as swin_unused
from mhim.encoders.vit import VisionTransformer, ViTSpec
from mhim.encoders.vit_layouts import fit_positions, spec_of, to_our_names
from mhim.encoders.weight_files import file_digest, find_weights, load_strictly, read_tensors
from mhim.errors import CheckpointError

Triple = tuple[float, float, float]


class FileConfig(NetworkConfig):
    """Options of an encoder whose weights are a file. Where it lies is no part of what identifies a bag."""

    weights: Path | None = Field(default=None, exclude=True, description="weight file, or a folder that holds it")


class HubConfig(FileConfig):
    """Options of an encoder whose weights are on the hub."""

    download: bool = Field(default=False, exclude=True, description="fetch the weights when they are not here")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")


class PublishedEncoder(NetworkEncoder):
    """An encoder that a card describes.

    Raises:
        ConfigError: the weight file is not on this machine, or cannot be fetched.
        CheckpointError: the file is not this network's.
    """

    class Config(HubConfig):
        """Options of an encoder whose weights are on the hub."""

    config: Config
    card: ClassVar[Card]

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        card = self.card
        path = find_weights(
            config.name,
            config.weights,
            card.hub,
            card.files,
            variable=card.variable,
            gated=card.gated,
            download=config.download,
            revision=config.revision,
        )
        self.weights_sha256 = file_digest(path)
        self.revision = f"{card.hub or card.name}@{config.revision or self.weights_sha256[:12]}"
        mean, std = card.normalisation
        self.transform = describe(card.input_px, card.fit, card.filter, mean, std)
        graph = make_graph(
            lambda: build_network(card.network, path), self.weights_sha256, repr(card.network), mean, std, card.dim
        )
        graph.is_transformer = card.network != "resnet50-stage3"
        self._set_up(graph)


def describe(side_px: int | None, fit: str, kind: str, mean: Triple, std: Triple) -> str:
    """The transform in words."""
    brought = {"resize": f"antialiased {kind} to {side_px} px", "crop": f"middle {side_px} px"}[fit]
    numbers = f"(x / 255 - {list(mean)}) / {list(std)}"
    return f"{brought}; {numbers}" if side_px else numbers


def build_network(network: ViTSpec | str, path: Path) -> nn.Module:
    """A network with the weights in a file, in evaluation mode.

    Raises:
        CheckpointError: the file is not exactly this network's.
    """
    tensors = read_tensors(path)
    if isinstance(network, ViTSpec):
        ours = _named(tensors, path)
        model = VisionTransformer(network)
        load_strictly(model, fit_positions(ours, network.grid), path)
        return model.eval()
    if network == "resnet50-stage3":
        resnet = ResNet50Stage3()
        kept = {key: value for key, value in tensors.items() if not is_unused(key)}
        kept |= {key: value for key, value in resnet.state_dict().items() if key.endswith("num_batches_tracked")}
        load_strictly(resnet, kept, path)
        return resnet.fold()
    swin = SwinCTransPath()
    kept = {key: value for key, value in tensors.items() if not swin_unused(key)}
    load_strictly(swin, kept, path)
    return swin.eval()


def _named(tensors: dict, path: Path) -> dict:
    try:
        return to_our_names(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _register(card: Card) -> None:
    members = {
        "__doc__": f"{card.title}; {card.paper}.",
        "__module__": __name__,
        "card": card,
        "dim": card.dim,
        "tile_px": card.tile_px,
        "mpp": card.mpp,
        "input_px": card.input_px,
        "fit": card.fit,
        "filter": card.filter,
        "licence": card.licence,
    }
    encoders.register(card.name)(type(card.name, (PublishedEncoder,), members))


for _card in CARDS.values():
    _register(_card)


@encoders.register("vit")
class OwnViT(NetworkEncoder):
    """A vision transformer of your own, from its file alone (timm's, DINOv2's or transformers' names).

    Raises:
        ConfigError: no file.
        CheckpointError: not a vision transformer.
    """

    class Config(FileConfig):
        """Options: the file, and what it does not say."""

        heads: int | None = Field(default=None, ge=1, description="attention heads; default: width / 64")
        input_px: int | None = Field(default=None, ge=1, description="input side; default: that of its positions")
        pool: str = Field(default="class", pattern=r"^class(\+mean)?$", description="class, or class+mean")
        mean: Triple = Field(default=IMAGENET[0], description="per channel, of pixels in [0, 1]")
        std: Triple = Field(default=IMAGENET[1], description="per channel, of pixels in [0, 1]")
        licence: str = Field(default="", description="of the weights, to be recorded")

    config: Config

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        path = find_weights(config.name, config.weights)
        ours = _named(read_tensors(path), path)
        spec = spec_of(ours, config.input_px, config.heads)
        if config.pool == "class+mean" and spec.pool == "class":
            spec = ViTSpec(**{**vars(spec), "pool": "class+mean"})
        self.dim, self.input_px, self.tile_px = spec.dim, spec.side_px, spec.side_px
        self.weights_sha256 = file_digest(path)
        self.revision = self.weights_sha256[:12]
        self.licence = config.licence
        self.transform = describe(spec.side_px, self.fit, self.filter, config.mean, config.std)
        graph = make_graph(
            lambda: build_network(spec, path), self.weights_sha256, repr(spec), config.mean, config.std, spec.dim
        )
        graph.is_transformer = True
        self._set_up(graph)
