"""Vision transformers (Dosovitskiy et al., ICLR 2021) in plain torch, with the variations of published encoders.

Layer scale (Touvron et al., ICCV 2021), register tokens (Darcet et al., ICLR 2024), gated feed-forward layers
(SwiGLU; Shazeer, 2020), a norm before the blocks (CLIP; Radford et al., ICML 2021), and pooling by a learnt
query (CoCa; Yu et al., TMLR 2022). ``mhim.encoders.vit_layouts`` brings published files into these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pool = Literal["class", "class+mean", "query"]


@dataclass(frozen=True)
class ViTSpec:
    """Shape of a vision transformer.

    Attributes:
        width, depth, heads: of the token stream.
        patch_px, side_px: side of a patch and of the input, in pixels.
        hidden: width between the two feed-forward layers, after gating.
        gated: SwiGLU instead of one activation.
        activation: of a feed-forward layer that is not gated.
        registers: tokens beside the class token that no pooling reads.
        layer_scale: a learnt factor per channel behind attention and feed-forward.
        pre_norm: a norm before the first block (CLIP).
        patch_bias: whether the patch projection has a bias.
        eps: of the norms.
        pool: class token; class token and mean of the patch tokens, 2 x width; or a learnt query.
        project: width of a linear layer, or of the query, behind the pooling; None for none.
        pooler_heads, pooler_bias: of the learnt query.
    """

    width: int
    depth: int
    heads: int
    patch_px: int
    side_px: int
    hidden: int
    gated: bool = False
    activation: Literal["gelu", "quick-gelu"] = "gelu"
    registers: int = 0
    layer_scale: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    eps: float = 1e-6
    pool: Pool = "class"
    project: int | None = None
    pooler_heads: int = 8
    pooler_bias: bool = True

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side_px // self.patch_px

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.project or (2 * self.width if self.pool == "class+mean" else self.width)


class Attention(nn.Module):
    """Self-attention of all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class FeedForward(nn.Module):
    """Two linear layers with an activation, or with SwiGLU, between them."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.hidden * (2 if spec.gated else 1))
        self.fc2 = nn.Linear(spec.hidden, spec.width)
        self.gated, self.activation = spec.gated, spec.activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same shape."""
        x = self.fc1(x)
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * value)
        return self.fc2(F.gelu(x) if self.activation == "gelu" else x * torch.sigmoid(1.702 * x))


class Scale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same shape."""
        return x * self.gamma


class Block(nn.Module):
    """Norm, attention, residual; norm, feed-forward, residual."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.attn = Attention(spec.width, spec.heads)
        self.ls1 = Scale(spec.width) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.mlp = FeedForward(spec)
        self.ls2 = Scale(spec.width) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class QueryPool(nn.Module):
    """One learnt query attends to all tokens; then a norm."""

    def __init__(self, spec: ViTSpec, width: int) -> None:
        super().__init__()
        bias = spec.pooler_bias
        self.heads = spec.pooler_heads
        self.query = nn.Parameter(torch.zeros(1, width))
        self.ln_q, self.ln_k, self.ln = nn.LayerNorm(width), nn.LayerNorm(spec.width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(size, width, bias=bias) for size in (width, spec.width, spec.width))
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, spec.width) -> (B, width)."""
        batch, count, _ = tokens.shape
        keys = self.ln_k(tokens)
        query = self.q(self.ln_q(self.query)).reshape(1, 1, self.heads, -1).expand(batch, -1, -1, -1)
        key, value = (layer(keys).reshape(batch, count, self.heads, -1) for layer in (self.k, self.v))
        found = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.ln(self.out(found.transpose(1, 2).reshape(batch, -1)))


class VisionTransformer(nn.Module):
    """A vision transformer without a classifier.

    ``prefix`` holds class and register tokens with their positions added, ``positions`` those of the patches.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch = nn.Conv2d(3, spec.width, spec.patch_px, spec.patch_px, bias=spec.patch_bias)
        self.prefix = nn.Parameter(torch.zeros(1, 1 + spec.registers, spec.width))
        self.positions = nn.Parameter(torch.zeros(1, spec.grid**2, spec.width))
        self.norm_pre = nn.LayerNorm(spec.width, eps=spec.eps) if spec.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(spec) for _ in range(spec.depth)))
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.pooler = QueryPool(spec, spec.dim) if spec.pool == "query" else None
        projects = spec.project is not None and spec.pool != "query"
        self.projection = nn.Linear(spec.width, spec.dim, bias=False) if projects else nn.Identity()

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens behind the last norm: (B, 3, side, side) -> (B, 1 + registers + patches, width)."""
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        x = torch.cat([self.prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.norm(self.blocks(self.norm_pre(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Features: (B, 3, side, side) normalised pixels -> (B, dim)."""
        x = self.tokens(x)
        if self.pooler is not None:
            return self.pooler(x)
        first = x[:, 0]
        if self.spec.pool == "class+mean":
            first = torch.cat([first, x[:, 1 + self.spec.registers :].mean(dim=1)], dim=1)
        return self.projection(first)
