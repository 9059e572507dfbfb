"""Published files of vision transformers, brought into the names of ``mhim.encoders.vit``.

Recognised by their tensors' names: timm, DINOv2's own, transformers' ViT, DINOv2 and CLIP, CONCH and CONCH v1.5.
Tensors that no feature needs (classifiers, text towers, mask tokens) are left out by name; all others must fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mhim.encoders.vit import ViTSpec
from mhim.errors import CheckpointError

Tensors = dict[str, Tensor]

_UNUSED = re.compile(
    r"^(head|fc_norm|head_dist|mask_token|pooler\.|classifier|text|logit_scale|logit_bias|temperature|proj_contrast"
    r"|visual\.(proj_contrast|attn_pool_caption|ln_caption|head)|attn_pool_caption|ln_caption|multimodal_decoder"
    r"|embeddings\.mask_token|.*position_ids$|rope)"
)
_TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
)
_CLIP = (
    (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.pre_layrnorm\.", "norm_pre."),
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"^visual_projection\.", "projection."),
)
_DINOV2 = (
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_CONCH = (
    (r"^visual\.", ""),
    (r"^trunk\.", ""),
    (r"^attn_pool_contrast\.attn\.(q|k|v)_proj_weight$", r"pooler.\1.weight"),
    (r"^attn_pool_contrast\.attn\.out_proj\.", "pooler.out."),
    (r"^attn_pool_contrast\.to_q\.", "pooler.q."),
    (r"^attn_pool_contrast\.to_out\.", "pooler.out."),
    (r"^attn_pool_contrast\.", "pooler."),
    (r"^ln_contrast\.", "pooler.ln."),
)


def to_our_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """A published file's tensors under the names of :class:`mhim.encoders.vit.VisionTransformer`.

    Class and register tokens come with their positions added (``prefix``), and ``positions`` are as stored.

    Raises:
        CheckpointError: not the tensors of a vision transformer.
    """
    names = set(tensors)
    stripped = {key.removeprefix("vit.").removeprefix("dinov2."): value for key, value in tensors.items()}
    if "vision_model.embeddings.class_embedding" in names:
        found = _split_parts(_renamed(stripped, _CLIP))
    elif "embeddings.cls_token" in stripped:
        found = _split_parts(_renamed(stripped, _TRANSFORMERS))
    elif any("trunk.cls_token" in name for name in names):
        found = _pooler_parts(_renamed(stripped, _CONCH))
    else:
        found = _renamed(stripped, _DINOV2)
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(found):
        raise CheckpointError(
            f"not a vision transformer that is known here (first tensors: {', '.join(sorted(names)[:4])})"
        )
    return _with_prefix(found)


def _renamed(tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> Tensors:
    out: Tensors = {}
    for key, value in tensors.items():
        if _UNUSED.match(key):
            continue
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        out[key] = value
    return out


def _split_parts(tensors: Tensors) -> Tensors:
    """Separate query, key and value layers as one."""
    out: Tensors = {}
    parts = {"query": 0, "key": 1, "value": 2, "q": 0, "k": 1, "v": 2}
    held: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value|q|k|v)\.(weight|bias)", key)
        if match:
            held.setdefault(f"{match[1]}.qkv.{match[3]}", {})[parts[match[2]]] = value
        else:
            out[key] = value
    for key, rows in held.items():
        if len(rows) != 3:
            raise CheckpointError(f"{key}: query, key or value is missing")
        out[key] = torch.cat([rows[index] for index in range(3)])
    return out


def _pooler_parts(tensors: Tensors) -> Tensors:
    """CONCH's pooler: stacked biases and stacked key-value weights as one layer each."""
    out = dict(tensors)
    bias = out.pop("pooler.attn.in_proj_bias", None)
    if bias is not None:
        out |= {f"pooler.{name}.bias": part for name, part in zip("qkv", bias.chunk(3), strict=True)}
    stacked = out.pop("pooler.to_kv.weight", None)
    if stacked is not None:
        out |= {f"pooler.{name}.weight": part for name, part in zip("kv", stacked.chunk(2), strict=True)}
    return out


def _with_prefix(tensors: Tensors) -> Tensors:
    """Class token, registers and positions as ``prefix`` and ``positions``."""
    out = dict(tensors)
    width = out["patch_embed.proj.weight"].shape[0]
    prefix = out.pop("cls_token").reshape(1, 1, width)
    positions = out.pop("pos_embed").reshape(1, -1, width)
    registers = out.pop("reg_token", None)
    count = 0 if registers is None else registers.shape[-2]
    extra = next((extra for extra in (0, 1, 1 + count) if _is_square(positions.shape[1] - extra)), None)
    if extra is None:
        raise CheckpointError(f"pos_embed: {positions.shape[1]} positions are no square of patches")
    if registers is not None:
        registers = registers.reshape(1, count, width)
    if registers is not None and extra != 1:
        prefix = torch.cat([prefix, registers], dim=1)
    if extra:
        prefix = prefix + positions[:, :extra]
    if registers is not None and extra == 1:
        prefix = torch.cat([prefix, registers], dim=1)
    out |= {"prefix": prefix, "positions": positions[:, extra:]}
    return {key.replace("patch_embed.proj.", "patch."): value for key, value in out.items()}


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def fit_positions(tensors: Tensors, grid: int) -> Tensors:
    """Positions resampled (bicubic, antialiased) to ``grid`` x ``grid`` patches; untouched where they fit."""
    positions = tensors["positions"]
    side = round(positions.shape[1] ** 0.5)
    if side == grid:
        return tensors
    picture = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=(grid, grid), mode="bicubic", antialias=True)
    return {**tensors, "positions": picture.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).to(positions.dtype)}


def spec_of(tensors: Mapping[str, Tensor], side_px: int | None = None, heads: int | None = None) -> ViTSpec:
    """The shape that a file's tensors (in our names) imply.

    Args:
        tensors: what :func:`to_our_names` returned.
        side_px: input side; by default the one of the stored positions.
        heads: attention heads; no file says it, by default one per 64 channels.

    Raises:
        CheckpointError: no heads that divide the width.
    """
    width, _, patch_px, _ = tensors["patch.weight"].shape
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    grid = round(tensors["positions"].shape[1] ** 0.5)
    heads = heads or max(1, width // 64)
    if width % heads:
        raise CheckpointError(f"{heads} heads do not divide the width {width}; say how many with --set encoder.heads=N")
    return ViTSpec(
        width=width,
        depth=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
        heads=heads,
        patch_px=patch_px,
        side_px=side_px or grid * patch_px,
        hidden=hidden,
        gated=tensors["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden,
        registers=tensors["prefix"].shape[1] - 1,
        layer_scale="blocks.0.ls1.gamma" in tensors,
        pre_norm="norm_pre.weight" in tensors,
        patch_bias="patch.bias" in tensors,
        pool="query" if "pooler.query" in tensors else "class",
        project=_project(tensors),
        pooler_bias="pooler.query" not in tensors or "pooler.out.bias" in tensors,
    )


def _project(tensors: Mapping[str, Tensor]) -> int | None:
    if "pooler.query" in tensors:
        return tensors["pooler.query"].shape[-1]
    return tensors["projection.weight"].shape[0] if "projection.weight" in tensors else None
