"""What a step sees: bags in groups, a random part of their instances, and what that part is called afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhim.cohort import read_cohort
from mhim.config import validate
from mhim.errors import ConfigError
from mhim.methods import methods
from mhim.models import MILModel, models
from mhim.training.data import BagSet, BagStore, LabelledBag
from mhim.training.epoch import train_epoch
from mhim.training.fit import TrainConfig, predict
from mhim.training.portion import Portion, draw
from mhim.training.step import BagStep, adam


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bag(count: int) -> LabelledBag:
    """Feature 0 of an instance is its number."""
    features = torch.arange(count, dtype=torch.float32)[:, None].expand(count, 4).contiguous()
    return LabelledBag("s", "c", features, torch.tensor(1))


def model(name: str = "abmil") -> MILModel:
    torch.manual_seed(0)
    return models.build(models.parse({"name": name, "dim": 8}), 4, 2)


@given(
    count=st.integers(1, 300),
    limit=st.one_of(st.none(), st.integers(1, 400)),
    dropout=st.floats(0, 1, exclude_max=True),
)
def test_the_rows_are_an_ascending_draw_without_replacement(count: int, limit: int | None, dropout: float) -> None:
    portion = Portion(1, limit, dropout)
    wanted = max(1, count - int(count * dropout))
    wanted = wanted if limit is None else min(limit, wanted)
    rows, source = portion.rows(count, generator()), generator()
    if wanted == count:
        assert rows is None
        portion.rows(count, source)
        assert torch.equal(source.get_state(), generator().get_state())
        return
    assert rows is not None
    assert len(rows) == wanted >= 1
    assert (rows.diff() > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < count


def test_every_instance_is_as_likely_as_any_other() -> None:
    source, drawn = generator(), torch.zeros(20)
    for _ in range(4000):
        drawn[Portion(1, 5).rows(20, source)] += 1
    assert ((drawn - 1000).abs() < 5 * (4000 * 0.25 * 0.75) ** 0.5).all()


def test_by_default_the_bag_itself_is_seen() -> None:
    whole = bag(9)
    seen = draw(whole, Portion(), model(), generator())
    assert seen.features is whole.features
    assert seen.order is None


@pytest.mark.parametrize("name", ["abmil", "dtfd"])
def test_the_order_names_the_instances_that_were_seen(name: str) -> None:
    """DTFD shuffles them in addition."""
    seen = draw(bag(30), Portion(1, 12), model(name), generator())
    assert seen.order is not None
    assert torch.equal(seen.features[:, 0], seen.order.float())
    assert len(seen.order) == len(seen.order.unique()) == 12
    assert bool((seen.order.diff() > 0).all()) == (name == "abmil")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bags_per_step": 0}, "bags_per_step"),
        ({"instances_max": 0}, "instances_max"),
        ({"instance_dropout": 1.0}, "instance_dropout"),
    ],
)
def test_impossible_portions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig, options, "test")


def training_part(folder: Path) -> BagSet:
    store = BagStore(folder / "features", read_cohort(folder / "cohort.csv"))
    return store.part([f"c{i:02d}" for i in range(8)])


class Watcher:
    """Stands where the monitor does, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[Tensor, int, int]] = {}

    def observe(self, slide_id: str, label: Tensor, mining: Any, order: Tensor, size: int) -> None:
        self.told[slide_id] = (order, size, len(mining.selection.high))

    def finish_epoch(self) -> dict[str, float | None]:
        return {}


@pytest.mark.parametrize("bags", [1, 3])
def test_training_sees_a_part_and_evaluation_all(cohort_folder: Path, bags: int) -> None:
    train, seen = training_part(cohort_folder), list[int]()
    torch.manual_seed(0)
    built = models.build(models.parse({"name": "abmil", "dim": 8}), 6, 2)
    options = {"name": "mhim-v1", "teacher_init": "student", "student_init": "none"}
    method = methods.build(methods.parse(options), built, None)
    watcher: Any = Watcher()
    stepping = BagStep(method, adam(method, 1e-3, 0.0))
    train_epoch(stepping, train, 0, 1, generator(), watcher, portion=Portion(bags, instances_max=5))
    sizes = {each.slide_id: len(each.features) for each in train}
    assert watcher.told.keys() == sizes.keys()
    for slide_id, (order, size, masked_over) in watcher.told.items():
        assert size == sizes[slide_id]
        assert masked_over == min(5, size)
        if size > 5:
            assert len(order) == 5
            assert int(order.max()) < size
    built.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    predict(built, train)
    assert seen == list(sizes.values())
