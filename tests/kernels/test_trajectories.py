"""Training by the fast paths is training by a plain reading of the published step: equal losses, step after step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhim.masks import masks
from mhim.methods import Step, methods
from mhim.models import models
from mhim.training.step import BagStep, Precision, adam

WIDTH, STEPS = 24, 5
PLAIN = ["abmil", "clam-mb", "dtfd", "dsmil", "transmil"]
HAM = {"name": "ham", "mask_ratio_high": 0.2, "high_candidate_factor": 0.5}
UNMASKED = {"name": "ham", "min_instances": 10_000}
MHIM = {"name": "mhim-v1", "teacher_init": "student", "student_init": "none", "mask": HAM}
PARTS = {"front.": "projection.", "token": "class_token", "convs.0": "position.conv7", "convs.1": "position.conv5"}
PARTS |= {"convs.2": "position.conv3", "norms.0": "layer1.norm", "norms.1": "layer2.norm", "norms.2": "norm"}
PARTS |= {f"layers.{i}.{old}": f"layer{i + 1}.attention.{new}" for i in (0, 1) for old, new in (("qkv", "to_qkv"),)}
PARTS |= {f"layers.{i}.out.0": f"layer{i + 1}.attention.to_out" for i in (0, 1)}
PARTS |= {f"layers.{i}.conv": f"layer{i + 1}.attention.value_convolution" for i in (0, 1)}
PARTS |= {"head.": "classifier.", "score.0": "attention.value", "score.2": "attention.score"}
PARTS |= {"instance.weight": "instance_classifier.weight", "instance.bias": "instance_classifier.bias"}
PARTS |= {"conv.": "fusion.", "value.1": "value.1", "a.0": "attention.value", "b.0": "attention.gate"}
PARTS |= {"score.w": "attention.score.w", "score.b": "attention.score.b", "instance.0": "instance_classifiers.0"}
PARTS |= {"instance.1": "instance_classifiers.1"}
PARTS |= {f"tier{i}.{old}.": f"tier{i}.{new}." for i in (1, 2) for old, new in (("v", "attention.value"),)}
PARTS |= {f"tier{i}.u.": f"tier{i}.attention.gate." for i in (1, 2)}
PARTS |= {f"tier{i}.w.": f"tier{i}.attention.score." for i in (1, 2)}
PARTS |= {f"tier{i}.c.": f"tier{i}.classifier." for i in (1, 2)}


def reference() -> ModuleType:
    """The benchmarks' plain reading."""
    path = Path(__file__).parents[2] / "benchmarks" / "learning_reference.py"
    spec = importlib.util.spec_from_file_location("learning_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A reference's weights under our names."""
    found = {}
    for name, value in state.items():
        if name.startswith("heads."):
            continue
        old = next((part for part in PARTS if name.startswith(part)), "")
        found[PARTS.get(old, "") + name[len(old) :]] = value[0] if name == "token" else value
    if "heads.0.weight" in state:
        for kind in ("weight", "bias"):
            found[f"classifier.{kind}"] = torch.cat([state[f"heads.{c}.{kind}"] for c in (0, 1)])
    return found


def without_dropout(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


def bag(index: int, size: int = 600) -> tuple[Tensor, int]:
    label = index % 2
    return torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(index)) + 0.5 * label, label


def ours(name: str, method: Any, state: dict[str, Tensor] | None, precision: Precision = "float32") -> list[float]:
    """Losses of our step; DTFD's pseudo-bags are cut in the bag's order."""
    torch.manual_seed(0)
    model = models.build(models.parse({"name": name} | ({"split": "contiguous"} if name == "dtfd" else {})), WIDTH, 2)
    without_dropout(model)
    if state is not None:
        wrong = model.load_state_dict(translated(state), strict=False)
        assert not wrong.unexpected_keys
        assert {key.split(".")[0] for key in wrong.missing_keys} <= {"predictor"}
    trained = methods.build(methods.parse(method), model, None).train()
    stepping, losses = BagStep(trained, adam(trained, 2e-4, 1e-5), precision), []
    for index in range(STEPS):
        features, label = bag(index)
        now = Step(index, 1 << 30, torch.Generator().manual_seed(index))
        losses.append(float(stepping.take([features], [torch.tensor(label)], now)[0].loss.detach()))
    return losses


@pytest.fixture
def drawn_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw from different generators; here every permutation is that which changes nothing."""
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))


def our_choice(_: nn.Module, salience: Tensor, count: int) -> Tensor:
    """Which instances are kept, where several heads vote and each program breaks ties in its own way."""
    assert salience.shape[1] == count
    return masks.build(masks.parse(HAM)).select(salience, 0.0, torch.Generator()).keep_index


@pytest.mark.usefixtures("drawn_in_order")
@pytest.mark.parametrize("name", [*PLAIN, "mhim-abmil", "mhim-dsmil", "mhim-transmil"])
def test_losses_are_those_of_the_plain_step(name: str) -> None:
    plain = reference()
    if name == "mhim-transmil":
        plain.MHIM.keep = our_choice
    model, is_mhim = name.removeprefix("mhim-"), name.startswith("mhim-")
    if is_mhim:
        plain.BUILD[name] = lambda d, c: plain.MHIM(plain.BUILD[model](d, c), (0.0, 0.0, 0.2), 0.9999)
    torch.manual_seed(3)
    start = {key: value.clone() for key, value in plain.BUILD[model](WIDTH, 2).state_dict().items()}
    monkeyed = plain.BUILD[name]

    def build(in_dim: int, classes: int) -> nn.Module:
        made = without_dropout(monkeyed(in_dim, classes))
        for part in [made.student, made.teacher] if is_mhim else [made]:
            part.load_state_dict(start)
        return made

    plain.BUILD[name] = build
    step = plain.reference_step(name, WIDTH, 2, 0)
    expected = [step(*bag(index)) for index in range(STEPS)]
    found = ours(model, MHIM if is_mhim else "supervised", start)
    assert found == pytest.approx(expected, rel=2e-5)
    assert max(found) > min(found) + 1e-3


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("method", ["supervised", MHIM | {"mask": UNMASKED}], ids=["supervised", "mhim-v1"])
def test_bfloat16_takes_nearly_the_same_steps(name: str, method: Any) -> None:
    """Within 2 % of the loss, or 0.02, over five steps; the loss itself moves by far more.

    Nothing is masked: where scores nearly tie, rounding ranks them otherwise, and the student sees other instances.
    """
    assert ours(name, method, None, "bfloat16") == pytest.approx(ours(name, method, None), rel=0.02, abs=0.02)


@pytest.mark.parametrize("budget_mib", [0, 1])
def test_what_is_computed_again_changes_no_number(budget_mib: int) -> None:
    def losses(budget: int | None) -> list[float]:
        torch.manual_seed(0)
        model = models.build(models.parse("abmil"), WIDTH, 2)
        if budget is not None:
            model.activation_bytes = budget << 20
        trained = methods.build(methods.parse(MHIM), model, None).train()
        stepping, found = BagStep(trained, adam(trained, 2e-4, 1e-5)), []
        for index in range(3):
            features, label = bag(index, 5000)
            now = Step(index, 1 << 30, torch.Generator().manual_seed(index))
            found.append(float(stepping.take([features], [torch.tensor(label)], now)[0].loss.detach()))
        return found

    assert losses(budget_mib) == losses(None)
