"""A training step that an outside harness can call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.config import merge
from mhim.heap import prepare_memory
from mhim.kernels import to_device
from mhim.methods import Method, Step, methods
from mhim.models import models
from mhim.presets import preset_names, read_preset
from mhim.training.fit import choose_device
from mhim.training.step import BagStep, Precision, adam

TOTAL_STEPS = 1 << 30
"""Length of the schedule, so that decays stay where they start."""
LR, WEIGHT_DECAY = 2e-4, 1e-5
PRESETS = {"mhim-v1": "iccv2023/{model}-camelyon16", "mhim-v2": "ijcv2025/{model}"}

Component = str | Mapping[str, Any]


def published(model: Component, method: Component) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a model and a method: the published ones of the pair, and what is given laid over them.

    Args:
        model: name of an aggregator, or a mapping with its ``name`` and options.
        method: the same of a training method.
    """
    given_model, given_method = (
        dict(part) if isinstance(part, Mapping) else {"name": part} for part in (model, method)
    )
    preset = PRESETS.get(str(given_method["name"]), "").format(model=given_model["name"])
    if preset not in preset_names():
        return given_model, given_method
    config = read_preset(preset).file.config
    return merge(config["model"], given_model), merge(config["method"], given_method)


def make_method(
    model: Component, method: Component, in_dim: int, n_classes: int, seed: int, device: torch.device
) -> Method:
    """A method around a fresh aggregator; a method that starts from a baseline gets another fresh one."""
    model_options, method_options = published(model, method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = models.parse(model_options)
        aggregator, baseline = (models.build(config, in_dim, n_classes) for _ in range(2))
        return methods.build(methods.parse(method_options), aggregator, baseline).to(device).train()


def make_step(
    model: Component,
    method: Component,
    in_dim: int,
    n_classes: int,
    seed: int,
    precision: Precision = "float32",
    device: str = "cpu",
    activation_mib: int | None = None,
) -> Callable[[Float[Tensor, "instances in_dim"], int | Tensor], Float[Tensor, ""]]:
    """One training step as the training loop takes it: loss, gradient, Adam, teacher.

    Args:
        model: an aggregator's name, or a mapping with ``name`` and options.
        method: a method's name, or such a mapping. A pair with a published configuration gets its options.
        in_dim: feature width D.
        n_classes: classes C.
        seed: of weights, masks and dropout (PyTorch's global generator is seeded with it).
        precision: of the matrix products, "float32" or "bfloat16".
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        activation_mib: what a step may keep for its gradient; the default is that of training.

    Returns:
        ``step(features, label) -> loss``: features (N, D) of any floating dtype, a class index; the loss () before
        the update, on the device, detached.

    Example:
        >>> step = make_step("abmil", "mhim-v1", in_dim=1024, n_classes=2, seed=0)
        >>> loss = step(torch.randn(8192, 1024), 1)
    """
    prepare_memory()
    place = choose_device(device)
    trained = make_method(model, method, in_dim, n_classes, seed, place)
    if activation_mib is not None:
        trained.model.activation_bytes = activation_mib << 20
    stepping = BagStep(trained, adam(trained, LR, WEIGHT_DECAY), precision)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    done = 0

    def step(features: Tensor, label: int | Tensor) -> Tensor:
        nonlocal done
        features, target = trained.model.check(features), to_device(torch.as_tensor(label), place)
        if trained.model.shuffles_in_training:
            features = features.index_select(0, torch.randperm(len(features), generator=generator).to(place))
        now = Step(done % TOTAL_STEPS, TOTAL_STEPS, generator)
        done += 1
        return stepping.take([features], [target], now)[0].loss.detach()

    return step
