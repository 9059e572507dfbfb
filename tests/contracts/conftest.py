"""The laws run on every registered aggregator, its variants, and those of ``--mhim-plugin mine.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mhim.models import MILModel, models
from mhim.registry import load_plugin

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "abmil": {"biased tanh": {"attention_bias": True, "attention_activation": "tanh"}},
    "mean": {"embedding": {"level": "embedding"}},
    "max": {"embedding": {"level": "embedding"}},
    "dsmil": {"mean logits": {"average": "logits"}},
    "clam-sb": {"subtyping": {"subtyping": True}, "cross-entropy": {"instance_loss": "cross-entropy"}},
    "clam-mb": {"subtyping": {"subtyping": True}},
    "dtfd": {kind: {"distillation": kind, "split": "contiguous"} for kind in ("maxs", "maxmins", "mas")},
    "transmil": {
        "class padding": {"padding": "class"},
        "last layer": {"attention_layer": "last", "class_row": "first-padded", "heads": 2, "landmarks": 8},
    },
}
"""Settings beside the defaults and the published variants under which the built-in aggregators are held to the laws."""

IN_DIM = 24


@dataclass(frozen=True)
class Subject:
    """One aggregator under one setting."""

    name: str
    setting: str = "defaults"
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, n_classes: int = 3, in_dim: int = IN_DIM, **options: Any) -> MILModel:
        """A fresh model in evaluation mode, the same one at every call; narrow where its width is an option."""
        narrow = {"dim": 32} if "dim" in models[self.name].Config.model_fields else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            config = models.parse({"name": self.name, **narrow, **self.options, **options})
            return models.build(config, in_dim, n_classes).eval()


def subjects() -> list[Subject]:
    """Every registered name, under every setting."""
    found = []
    for name in models:
        settings = {"defaults": {}, **models[name].variants, **SETTINGS.get(name, {})}
        found += [Subject(name, setting, dict(options)) for setting, options in settings.items()]
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mhim-plugin", action="append", default=[], help="file that registers aggregators to test")


def pytest_configure(config: pytest.Config) -> None:
    for path in config.getoption("--mhim-plugin", []):
        load_plugin(Path(path))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        every = subjects()
        metafunc.parametrize("subject", every, ids=[f"{each.name}-{each.setting}" for each in every])


@pytest.fixture
def bag() -> Callable[..., torch.Tensor]:
    """bag(n, ...) -> (n, IN_DIM) features, always the same ones for the same n."""

    def draw(n: int, dtype: torch.dtype = torch.float64, in_dim: int = IN_DIM) -> torch.Tensor:
        return torch.randn(n, in_dim, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)

    return draw
