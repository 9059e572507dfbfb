"""What entries are measured against: an aggregator of PyTorch's own layers that this project's code has no part in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.training.step import Precision

YARDSTICK = "yardstick"
DIM = 512


def make_yardstick(in_dim: int, n_classes: int, seed: int, device: torch.device) -> nn.Module:
    """Every instance through a linear layer and ReLU, the mean of all, a linear layer: as large as AB-MIL's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList([nn.Linear(in_dim, DIM), nn.Linear(DIM, n_classes)]).to(device)


def logits_of(model: nn.Module, features: Tensor, device: torch.device) -> Tensor:
    """(C,) logits of a bag (N, D)."""
    embed, classify = model.children()
    return classify(F.relu(embed(features.to(device).float())).mean(dim=0))


def yardstick_step(model: nn.Module, device: torch.device, precision: Precision) -> Callable[[Tensor, int], object]:
    """One training step with plain Adam."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step(features: Tensor, label: int) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(logits_of(model, features, device)[None].float(), _target(label, device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def _target(label: int, device: torch.device) -> Tensor:
    return torch.tensor([label], device=device)
