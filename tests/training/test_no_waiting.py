"""A training step never asks the device for a value, so an accelerator is never waited for.

Everything that is on the device lies on PyTorch's ``meta`` device here, which has shapes and no values: reading one,
or asking for something whose shape depends on one, is an error by itself. Copies to it that would wait are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mhim.methods import Method, methods
from mhim.models import models
from mhim.models.abmil import ABMIL
from mhim.training.data import LabelledBag
from mhim.training.epoch import Tally, train_epoch
from mhim.training.monitor import MiningMonitor
from mhim.training.portion import Portion
from mhim.training.step import BagStep, adam

D = 6
SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"dim": 8, "attention_dim": 4},
    "clam-sb": {"dim": 8, "attention_dim": 4},
    "clam-mb": {"dim": 8, "attention_dim": 4, "subtyping": True},
    "dsmil": {"dim": 8, "query_dim": 4},
    "mean": {"dim": 8},
    "max": {"dim": 8},
    "dtfd": {"dim": 8, "attention_dim": 4},
    "transmil": {"dim": 8, "heads": 2, "landmarks": 4},
}
ALONE = {"teacher_init": "student", "student_init": "none"}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"name": "supervised"},
    "mhim": {"name": "mhim-v1", **ALONE},
    "mhim-l-ham": {"name": "mhim-v1", **ALONE, "mask": "l-ham"},
    "mhim-v2": {"name": "mhim-v2", **ALONE, "recycle_heads": 2, "recycle_head_dim": 4},
}


@dataclass
class Held:
    """Bags in memory, as the loop takes them."""

    bags: list[LabelledBag]

    def __len__(self) -> int:
        return len(self.bags)

    def in_order(self, order: Sequence[int]) -> Iterator[LabelledBag]:
        return (self.bags[index] for index in order)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(bag.slide_id for bag in self.bags)


class Waits(TorchDispatchMode):
    """Counts copies between host and device that are waited for."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args and isinstance(args[0], torch.Tensor) else None
        target = torch.device(kwargs.get("device") or (given.device if given is not None else "cpu"))
        if func is torch.ops.aten._to_copy.default and given is not None and given.device != target:
            self.found += not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the device, and what is read once an epoch has no value."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(Tally, "read", lambda tally: ([0.0] * len(tally.losses), {}))
    monkeypatch.setattr(MiningMonitor, "finish_epoch", lambda monitor: {})


def build(name: str, method: str) -> Method:
    torch.manual_seed(0)
    model = models.build(models.parse({"name": name, **SMALL[name]}), D, 2)
    model.standardise(torch.zeros(D), torch.ones(D))
    return methods.build(methods.parse(METHODS[method]), model, None).to("meta").train()


def waits(name: str, method: str, portion: Portion) -> int:
    """Copies that were waited for in two epochs over a bag of one instance and one of 20, both annotated."""
    generator = torch.Generator().manual_seed(0)
    held: Any = Held([LabelledBag(f"s{n}", f"c{n}", torch.randn(n, D), torch.tensor(n % 2)) for n in (1, 20)])
    monitor, built = MiningMonitor(lambda slide: torch.ones(int(slide[1:]))), build(name, method)
    stepping = BagStep(built, adam(built, 1e-3, 0.0))
    with Waits() as counted:
        for index in range(2):
            train_epoch(stepping, held, index, 2, generator, monitor, portion=portion)
    return counted.found


PORTIONS = {"one bag": Portion(), "two bags": Portion(2), "a part": Portion(1, 15, 0.1)}
CASES = [
    (name, method, which) for name in SMALL for method in ("supervised", "mhim") for which in ("one bag", "two bags")
]
CASES += [("abmil", "mhim-l-ham", "two bags"), ("transmil", "mhim-v2", "one bag"), ("clam-mb", "mhim-v2", "two bags")]
CASES += [("abmil", "mhim", "a part"), ("dtfd", "supervised", "a part")]


@pytest.mark.parametrize(("name", "method", "which"), CASES)
def test_an_epoch_waits_for_nothing(name: str, method: str, which: str) -> None:
    assert waits(name, method, PORTIONS[which]) == 0


def test_heads_that_vote_for_both_ends_ask_how_far_their_sets_overlap() -> None:
    """The one published configuration whose steps read a value: MHIM around TransMIL with low and high sets."""
    with pytest.raises(RuntimeError, match="meta"):
        waits("transmil", "mhim-l-ham", PORTIONS["one bag"])


class Asking(ABMIL):
    """An aggregator that reads a value in its forward pass."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        return output if float(output.logits[0].detach()) > 0 else output


class Fetching(ABMIL):
    """An aggregator that waits for a copy."""

    def forward(self, features: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        scale = torch.ones(D).to(features.device)
        return super().forward(features * scale, *arguments, **options)


def test_what_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._classes, "abmil", Asking)
    with pytest.raises(RuntimeError, match="meta"):
        waits("abmil", "supervised", PORTIONS["one bag"])
    monkeypatch.setitem(models._classes, "abmil", Fetching)
    assert waits("abmil", "supervised", PORTIONS["one bag"]) == 4
