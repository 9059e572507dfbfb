"""A step on several bags is the mean of steps on one bag at a time: losses, gradients, masks, teacher."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mhim.training.step as step_module
from mhim.cohort import read_cohort
from mhim.methods import DiscreteHazards, Method, Step, methods
from mhim.methods.mhim import MHIM
from mhim.methods.supervised import Supervised
from mhim.models import models
from mhim.models.abmil import ABMIL
from mhim.training.data import BagStore
from mhim.training.epoch import train_epoch
from mhim.training.portion import Portion
from mhim.training.step import BagStep, adam, runs

D, C = 6, 3
ALONE = {"teacher_init": "student", "student_init": "none"}
SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"attention_dim": 4},
    "clam-sb": {"attention_dim": 4, "attention_dropout": 0.0, "cluster_size": 2},
    "clam-mb": {"attention_dim": 4, "attention_dropout": 0.0, "cluster_size": 2, "subtyping": True},
    "dsmil": {"query_dim": 4},
    "mean": {},
    "max": {},
    "dtfd": {"attention_dim": 4, "pseudo_bags": 2},
    "transmil": {"heads": 2, "landmarks": 2, "attention_dropout": 0.0},
}
VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in SMALL),
    {"name": "abmil", "gated": True, "attention_activation": "tanh", "attention_bias": True},
    {"name": "abmil", "activation": "gelu", "attention_activation": "gelu"},
    {"name": "max", "level": "embedding"},
    {"name": "dsmil", "average": "logits", "projection": "none", "value": "identity"},
]
METHODS: list[dict[str, Any]] = [
    {"name": "supervised"},
    {"name": "mhim-v1", **ALONE},
    {"name": "mhim-v1", **ALONE, "mask": {"name": "lr-ham", "mask_ratio_random": 0.4, "high_candidate_factor": 0.5}},
    {"name": "mhim-v2", **ALONE, "keep_ratio": 0.5, "recycle_dropout": 0.0, "recycle_heads": 2, "recycle_head_dim": 3},
]


def build(model: dict[str, Any], method: dict[str, Any]) -> Method:
    torch.manual_seed(5)
    options = {"dim": 8, "dropout": 0.0, **SMALL[model["name"]], **model}
    aggregator = models.build(models.parse(options), D, C)
    aggregator.standardise(torch.linspace(-1, 1, D), torch.linspace(0.5, 2, D))
    return methods.build(methods.parse(method), aggregator, None).double().train()


def bags_of(sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(sum(sizes))
    features = [torch.randn(size, D, generator=generator, dtype=torch.float64) for size in sizes]
    return features, [torch.tensor(at % C) for at in range(len(sizes))]


def now(index: int = 1) -> Step:
    return Step(index, 10, torch.Generator().manual_seed(3))


def gradients(method: Method) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None}


def one_at_a_time(method: Method, sizes: list[int]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], Step]:
    """Loss terms of each bag and the gradient of their mean."""
    features, labels = bags_of(sizes)
    results, step = [], now()
    for bag, label in zip(features, labels, strict=True):
        results.append(method.step(bag, label, step))
        (results[-1].loss / len(sizes)).backward()
    return results, gradients(method), step


def assert_same_step(one: Method, other: Method, sizes: list[int]) -> None:
    """``take`` on one method against accumulated gradients on an equal one."""
    expected, wanted, step = one_at_a_time(other, sizes)
    features, labels = bags_of(sizes)
    optimiser = torch.optim.SGD(one.trainable(), lr=0.0)
    found = BagStep(one, optimiser).take(features, labels, again := now())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.terms.keys() == theirs.terms.keys()
        torch.testing.assert_close(dict(ours.terms), dict(theirs.terms), rtol=1e-9, atol=1e-12)
        assert ours.watched == theirs.watched
        if theirs.mining is not None:
            assert torch.equal(ours.mining.selection.keep_index, theirs.mining.selection.keep_index)
            assert torch.equal(ours.mining.shown, theirs.mining.shown)
            torch.testing.assert_close(ours.mining.student_salience, theirs.mining.student_salience)
    got = gradients(one)
    assert got.keys() == wanted.keys()
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-12)
    assert torch.equal(again.generator.get_state(), step.generator.get_state())


@pytest.mark.parametrize("method", METHODS, ids=["supervised", "mhim", "mhim lr-ham", "mhim v2"])
@pytest.mark.parametrize("model", VARIANTS, ids=str)
def test_gradients_are_those_of_bags_one_at_a_time(model: dict[str, Any], method: dict[str, Any]) -> None:
    sizes = [5, 1, 12, 2, 7]
    assert_same_step(build(model, method), build(model, method), sizes)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6), which=st.sampled_from(METHODS))
@settings(max_examples=15, deadline=None)
def test_of_any_sizes(sizes: list[int], which: dict[str, Any]) -> None:
    for name in ("abmil", "clam-mb", "dsmil"):
        assert_same_step(build({"name": name}, which), build({"name": name}, which), sizes)


@pytest.mark.parametrize("name", ["abmil", "dsmil"])
def test_survival_is_the_same_too(name: str) -> None:
    both = [build({"name": name}, METHODS[1]) for _ in range(2)]
    for each in both:
        each.objective = DiscreteHazards(0.2)
    features, _ = bags_of([4, 9, 3])
    targets = [torch.tensor(pair) for pair in ([0, 1], [2, 0], [1, 1])]
    BagStep(both[0], torch.optim.SGD(both[0].trainable(), lr=0.0)).take(features, targets, now())
    step = now()
    for bag, target in zip(features, targets, strict=True):
        (both[1].step(bag, target, step).loss / 3).backward()
    torch.testing.assert_close(gradients(both[0]), gradients(both[1]), rtol=1e-6, atol=1e-12)


def test_cut_into_runs_the_step_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [5, 1, 12, 2, 7]
    whole, cut = (build({"name": "abmil"}, METHODS[1]) for _ in range(2))
    features, labels = bags_of(sizes)
    for limit, method in ((1000, whole), (8, cut)):
        monkeypatch.setattr(step_module, "PACKED_ROWS", {"cpu": limit})
        BagStep(method, torch.optim.SGD(method.trainable(), lr=0.0)).take(features, labels, now())
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-9, atol=1e-12)


def test_runs_hold_as_many_bags_as_fit() -> None:
    assert runs([5, 1, 12, 2, 7], 8) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert runs([5, 3, 8, 9, 1], 8) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert runs([5, 3], 100) == [slice(0, 2)]
    assert runs([500], 8) == [slice(0, 1)]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20), limit=st.integers(1, 60))
def test_runs_are_a_partition_in_order(sizes: list[int], limit: int) -> None:
    found = runs(sizes, limit)
    assert [size for run in found for size in sizes[run]] == sizes
    assert all(sum(sizes[run]) <= limit or run.stop - run.start == 1 for run in found)
    assert all(sum(sizes[one]) + sizes[two.start] > limit for one, two in zip(found, found[1:], strict=False))


def test_v2s_query_follows_the_mean_of_the_steps_tokens() -> None:
    packed, single = (build({"name": "abmil"}, METHODS[3] | {"recycle_momentum": 0.5}) for _ in range(2))
    sizes = [6, 11]
    before = packed.recycler.query.clone()
    features, labels = bags_of(sizes)
    BagStep(packed, torch.optim.SGD(packed.trainable(), lr=0.0)).take(features, labels, now())
    fresh, step = [], now()
    for bag, label in zip(features, labels, strict=True):
        one = copy.deepcopy(single)
        one.step(bag, label, step)
        one.after_step(step)
        fresh.append(2 * one.recycler.query - before)
    torch.testing.assert_close(packed.recycler.query, before / 2 + (fresh[0] + fresh[1]) / 4)


def test_bfloat16_is_near() -> None:
    exact, near = (build({"name": "clam-mb"}, {"name": "supervised"}).float() for _ in range(2))
    features, labels = bags_of([30, 50])
    features = [bag.float() for bag in features]
    for method, precision in ((exact, "float32"), (near, "bfloat16")):
        BagStep(method, torch.optim.SGD(method.trainable(), lr=0.0), precision).take(features, labels, now())
    for name, value in gradients(exact).items():
        assert (gradients(near)[name] - value).norm() <= 0.1 * value.norm() + 1e-3, name


class OwnForward(ABMIL):
    """A plug-in that changes what the aggregator says."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        return replace(output, logits=-output.logits)


class OwnStep(Supervised):
    """A plug-in that changes the loss of a step."""

    def step(self, *arguments: Any) -> Any:
        result = super().step(*arguments)
        result.terms["classification"] = 2 * result.terms["classification"]
        return result


class OwnStudent(MHIM):
    """A plug-in whose student sees the first kept instance alone."""

    def student(self, features: Tensor, selection: Any, step: Step) -> Any:
        return self.model(features, selection.keep_index[:1]), selection.keep_index[:1]


@pytest.mark.parametrize("method", [Supervised, OwnStep, MHIM, OwnStudent])
@pytest.mark.parametrize("model", [ABMIL, OwnForward])
def test_plug_ins_need_nothing(model: type[ABMIL], method: type[Method]) -> None:
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        aggregator = model(ABMIL.Config.model_validate({"dim": 8, "dropout": 0, "attention_dim": 4}), D, C)
        options = ALONE if issubclass(method, MHIM) else {}
        both.append(method(method.Config.model_validate(options), aggregator, None).double().train())
    assert_same_step(*both, [3, 8, 1])


def test_an_epoch_takes_fewer_steps_on_the_mean_loss(cohort_folder: Path) -> None:
    """8 bags by 3: 3 steps whose losses, without moving the weights, are those of one at a time."""
    train = BagStore(cohort_folder / "features", read_cohort(cohort_folder / "cohort.csv")).part(
        [f"c{i:02d}" for i in range(8)]
    )
    told = []
    for bags in (1, 3):
        torch.manual_seed(5)
        model = models.build(models.parse({"name": "abmil", "dim": 8, "dropout": 0.0}), 6, 2)
        method = methods.build(methods.parse({"name": "mhim-v1", **ALONE, "momentum": 1.0}), model, None)
        steps: list[int] = []
        method.after_step = lambda step, steps=steps: steps.append(step.index)
        stepping = BagStep(method, torch.optim.SGD(method.trainable(), lr=0.0))
        generator = torch.Generator().manual_seed(0)
        terms, watched = train_epoch(stepping, train, 1, 4, generator, portion=Portion(bags))
        told.append((terms, watched, steps, generator.get_state().tolist()))
    assert told[0][2] == list(range(8, 16))
    assert told[1][2] == [3, 4, 5]
    assert told[1][0] == pytest.approx(told[0][0], rel=1e-5)
    assert told[1][1] == pytest.approx(told[0][1])
    assert told[1][3] == told[0][3]


def test_several_bags_learn() -> None:
    torch.manual_seed(0)
    bags = [torch.randn(40, D, dtype=torch.float64) + label for label in (0, 1, 0, 1)]
    labels = [torch.tensor(label) for label in (0, 1, 0, 1)]
    method = build({"name": "abmil"}, METHODS[1])
    stepping = BagStep(method, adam(method, 1e-2, 0.0))
    losses = []
    for index in range(60):
        step = Step(index, 60, torch.Generator().manual_seed(index))
        losses.append(sum(result.loss.item() for result in stepping.take(bags, labels, step)))
    assert losses[-1] < 0.5 * losses[0]
