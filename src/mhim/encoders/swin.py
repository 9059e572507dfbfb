"""CTransPath's network (Wang et al., Medical Image Analysis 2022): Swin-T with a convolutional stem, in plain torch.

Swin: Liu et al., ICCV 2021. The names are those of the published file. Input is 224 x 224 px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE_PX, WINDOW = 224, 7
WIDTH, HEADS, DEPTHS = 96, (3, 6, 12, 24), (2, 2, 6, 2)
DIM = WIDTH * 8


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2 and a projection: (B, 3, 224, 224) -> (B, 56 x 56, 96)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, outputs = 3, WIDTH // 8
        for _ in range(2):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs, outputs = outputs, outputs * 2
        self.proj = nn.Sequential(*layers, nn.Conv2d(inputs, WIDTH, 1))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, side, side) -> (B, side / 4, side / 4, 96)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Attention inside windows of 7 x 7 tokens, with a learnt bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside windows.

        Args:
            x: (B x windows, 49, width).
            mask: (windows, 49, 49), added to the scores, or None.
        """
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        index = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table[index].reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = (qkv[0] * (width // self.heads) ** -0.5) @ qkv[1].transpose(-2, -1) + bias
        if mask is not None:
            grouped = scores.reshape(-1, mask.shape[0], self.heads, tokens, tokens) + mask[None, :, None]
            scores = grouped.reshape(count, self.heads, tokens, tokens)
        out = scores.softmax(dim=-1) @ qkv[2]
        return self.proj(out.transpose(1, 2).reshape(count, tokens, width))


class SwinBlock(nn.Module):
    """Window attention, shifted by half a window in every second block, and feed-forward."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.side = side
        self.shift = WINDOW // 2 if shifted and side > WINDOW else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.register_buffer("mask", shift_mask(side, self.shift) if self.shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side, side, width) -> the same shape."""
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), dims=(1, 2))
        y = from_windows(self.attn(to_windows(y), self.mask), self.side)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Merge(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side, side, width) -> (B, side / 2, side / 2, 2 width)."""
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class SwinCTransPath(nn.Module):
    """The network without its head: mean of the last tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = ConvStem()
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            width, side = WIDTH * 2**stage, SIDE_PX // 4 // 2**stage
            layer = nn.Module()
            layer.blocks = nn.Sequential(*(SwinBlock(width, heads, side, index % 2 == 1) for index in range(depth)))
            layer.downsample = Merge(width) if stage < len(DEPTHS) - 1 else nn.Identity()
            self.layers.append(layer)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Features: (B, 3, 224, 224) normalised pixels -> (B, 768)."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer.get_submodule("downsample")(layer.get_submodule("blocks")(x))
        return self.norm(x).mean(dim=(1, 2))


def to_windows(x: Tensor) -> Tensor:
    """(B, side, side, width) -> (B x windows, 49, width)."""
    batch, side, _, width = x.shape
    x = x.reshape(batch, side // WINDOW, WINDOW, side // WINDOW, WINDOW, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, width)


def from_windows(windows: Tensor, side: int) -> Tensor:
    """Reverse of :func:`to_windows`."""
    width, across = windows.shape[-1], side // WINDOW
    x = windows.reshape(-1, across, across, WINDOW, WINDOW, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, width)


def relative_positions() -> Tensor:
    """(49, 49) int64: row of the bias table for each pair of tokens of a window."""
    rows, columns = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    dy = rows.flatten()[:, None] - rows.flatten()[None] + WINDOW - 1
    dx = columns.flatten()[:, None] - columns.flatten()[None] + WINDOW - 1
    return dy * (2 * WINDOW - 1) + dx


def shift_mask(side: int, shift: int) -> Tensor:
    """(windows, 49, 49): -100 between tokens that were not neighbours before the shift, else 0."""
    part = torch.tensor([0] * (side - WINDOW) + [1] * (WINDOW - shift) + [2] * shift)
    regions = to_windows((part[:, None] * 3 + part[None]).reshape(1, side, side, 1))[..., 0]
    return torch.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)


def is_unused(name: str) -> bool:
    """Whether a published file's tensor is a table that is computed here, or the head."""
    return name.startswith("head.") or name.endswith(("relative_position_index", "attn_mask"))
