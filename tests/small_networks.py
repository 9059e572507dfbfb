"""Weight files of small random networks, written in the names of published ones."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from mhim.encoders.resnet import ResNet50Stage3

Tensors = dict[str, torch.Tensor]


def timm_tensors(
    width=48, depth=2, patch=8, grid=4, hidden=96, gated=False, registers=0, scale=True, seed=0
) -> Tensors:
    """A vision transformer in timm's names, positions of class, registers and patches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    def layer(name, rows, *columns):
        weight = draw(rows, *columns) if columns else 1 + draw(rows)
        return {f"{name}.weight": weight, f"{name}.bias": draw(rows)}

    tensors = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + registers + grid**2, width)}
    tensors |= {"reg_token": draw(1, registers, width)} if registers else {}
    tensors |= layer("patch_embed.proj", width, 3, patch, patch)
    for block in (f"blocks.{index}" for index in range(depth)):
        tensors |= layer(f"{block}.norm1", width) | layer(f"{block}.norm2", width)
        tensors |= layer(f"{block}.attn.qkv", 3 * width, width) | layer(f"{block}.attn.proj", width, width)
        tensors |= layer(f"{block}.mlp.fc1", hidden * (2 if gated else 1), width)
        tensors |= layer(f"{block}.mlp.fc2", width, hidden)
        tensors |= {f"{block}.ls{index}.gamma": draw(width) for index in (1, 2)} if scale else {}
    return tensors | layer("norm", width)


def vit_file(folder: Path, **options) -> Path:
    """A small vision transformer as a safetensors file; takes tiles of any side, scaled to 32 px."""
    save_file(timm_tensors(**options), folder / "model.safetensors")
    return folder / "model.safetensors"


@cache
def resnet_tensors(seed=0) -> Tensors:
    """ResNet-50 with He's random weights and BatchNorm statistics, as torchvision names it, fourth stage left out."""
    generator = torch.Generator().manual_seed(seed)
    tensors = ResNet50Stage3().state_dict()
    for key, value in tensors.items():
        if key.endswith("num_batches_tracked"):
            continue
        if value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif key.endswith(("running_var", "weight")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return {**tensors, "fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}


def resnet_file(folder: Path) -> Path:
    """ResNet-50 as a torch file."""
    torch.save(resnet_tensors(), folder / "resnet50.pth")
    return folder / "resnet50.pth"
