"""ResNet-50 (He et al., CVPR 2016) to its third stage, in plain torch: CLAM's 1024 features.

The names are those of the published files (torchvision, timm). CLAM (Lu et al., 2021) averages the output of
the third stage over space; the fourth stage and the classifier are not built.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2))
"""Blocks, inner channels and stride of each stage."""
EXPANSION = 4
DIM = 1024


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride), 1 x 1 convolutions and a shortcut."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 4 x inner, ceil(h / stride), ceil(w / stride))."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y.add_(self.downsample(x)), inplace=True)


class ResNet50Stage3(nn.Module):
    """The first three stages and the mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, (count, inner, stride) in enumerate(STAGES, start=1):
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(inputs, inner, stride if index == 0 else 1))
                inputs = inner * EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Features: (B, 3, h, w) normalised pixels -> (B, 1024)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean(dim=(2, 3))

    def fold(self) -> ResNet50Stage3:
        """Fold every BatchNorm into its convolution, in evaluation mode."""
        self.eval()
        for module in self.modules():
            for conv, norm in _pairs(module):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
        return self


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions of a module and of the BatchNorms behind them."""
    if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
        return [("0", "1")]
    names = [(f"conv{index}", f"bn{index}") for index in (1, 2, 3)]
    return [(conv, norm) for conv, norm in names if isinstance(getattr(module, norm, None), nn.BatchNorm2d)]


def is_unused(name: str) -> bool:
    """Whether a published file's tensor belongs to what is not built here."""
    return name.startswith(("layer4.", "fc.")) or name.endswith("num_batches_tracked")
