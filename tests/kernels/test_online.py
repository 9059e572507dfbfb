"""Bags that come chunk by chunk: the same as in one piece, in the memory of a chunk."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhim.heap import bound_caches
from mhim.kernels import Embedding, OnlineMax, OnlineSoftmax, Rows, embed, token_chunks
from mhim.models import MILModel, models

D = 12
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(deadline=None)
@given(sizes=sizes, scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 99))
def test_softmax_over_chunks_is_that_over_all(sizes: list[int], scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(2, 3, sum(sizes), generator=generator, dtype=torch.float64)
    values = torch.randn(2, sum(sizes), 5, generator=generator, dtype=torch.float64)
    online = OnlineSoftmax(values.new_empty(2, 3, 5))
    for part, rows in zip(scores.split(sizes, dim=-1), values.split(sizes, dim=-2), strict=True):
        online.add(part, rows)
    torch.testing.assert_close(online.pooled, scores.softmax(dim=-1) @ values)
    share = (scores - online.top).exp() / online.total
    torch.testing.assert_close(share, scores.softmax(dim=-1))


@settings(deadline=None)
@given(sizes=sizes, seed=st.integers(0, 99))
def test_the_largest_over_chunks_is_that_over_all_and_the_first_of_equals(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (sum(sizes), 3), generator=generator).double()
    rows = torch.randn(sum(sizes), 2, generator=generator)
    online = OnlineMax()
    for part, own in zip(scores.split(sizes), rows.split(sizes), strict=True):
        online.add(part, own)
    first = [column.tolist().index(column.max()) for column in scores.T]
    assert online.positions.tolist() == first
    assert torch.equal(online.scores, scores.amax(dim=0))
    assert torch.equal(online.rows, rows[first])


def test_chunks_of_tokens_are_those_of_the_whole_bag_with_its_dropout() -> None:
    torch.manual_seed(0)
    features, index = torch.randn(4000, D), torch.randperm(4000)[:2500]
    rows, embedding = Rows(features, index, features.device, torch.float32), Embedding(torch.randn(16, D), None, 0.25)
    with torch.no_grad():
        whole = embed(rows, embedding, seed=5)
    found = list(token_chunks(rows, embedding, 5))
    assert [len(tokens) for tokens in found] == [256] * 9 + [64] * 3 + [4]
    torch.testing.assert_close(torch.cat(found), whole)


@pytest.mark.parametrize("place", [slice(0, None, 3), slice(2, None, 3), slice(100, 1700)])
@pytest.mark.parametrize("chosen", [False, True])
def test_rows_by_a_step_are_those_of_a_list(place: slice, chosen: bool) -> None:
    features, index = torch.randn(4000, D), torch.randperm(4000) if chosen else None
    rows = Rows(features, index, features.device, torch.float32).every(place)
    plain = (features if index is None else features[index])[place]
    assert torch.equal(torch.cat([rows.part(each) for each in rows.parts()]), plain)
    positions = torch.tensor([5, 0, 1300])
    assert torch.equal(rows.at(positions), plain[positions])
    assert torch.equal(rows.subset(positions).part(slice(0, 2)), plain[positions[:2]])


@given(count=st.integers(1, 9000))
def test_the_parts_of_a_bag_are_every_row_once_in_few_shapes(count: int) -> None:
    places = list(Rows(torch.empty(count, 0), None, torch.device("cpu"), torch.float32).parts())
    assert [row for place in places for row in range(place.start, place.stop)] == list(range(count))
    lengths = [place.stop - place.start for place in places]
    assert lengths == sorted(lengths, reverse=True)
    assert {length for length in lengths if length >= 64} <= ({1024, 256, 64} if count > 1024 else {count})


def test_autocast_is_what_it_was_between_chunks() -> None:
    features = torch.randn(2500, D)
    rows = Rows(features, None, features.device, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for tokens in token_chunks(rows, Embedding(torch.randn(16, D), None), 0):
            assert torch.is_autocast_enabled("cpu")
            assert tokens.dtype == torch.bfloat16


STREAMED = [
    {"name": "abmil"},
    {"name": "clam-mb"},
    {"name": "dtfd"},
    {"name": "mean"},
    {"name": "max"},
    {"name": "max", "level": "embedding"},
    {"name": "dsmil"},
    {"name": "dsmil", "value": "identity", "output": "sigmoid", "average": "logits"},
]


@pytest.mark.parametrize("options", STREAMED, ids=str)
@pytest.mark.parametrize("budget", [0, 40 << 20])
class TestTheBagAlone:
    """Without instances and without a gradient a bag is streamed: ten chunks, of which none or all are kept."""

    def model(self, options: dict[str, object], budget: int) -> MILModel:
        torch.manual_seed(0)
        model = models.build(models.parse({**options, "dim": 16}), D, 3).double().eval()
        model.standardise(torch.linspace(-1, 1, D), torch.linspace(0.5, 2, D))
        model.activation_bytes = budget
        return model

    def features(self) -> Tensor:
        return torch.randn(2500, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_is_that_of_the_plain_form(self, options: dict[str, object], budget: int) -> None:
        model, features = self.model(options, budget), self.features()
        plain = model.aggregate(model.project(model.standardised(features)))
        with torch.inference_mode():
            alone = model(features, instances=False)
        for name in ("logits", "probabilities", "bag_embedding"):
            torch.testing.assert_close(getattr(alone, name), getattr(plain, name))
        torch.testing.assert_close(model.bag_logits(alone), model.bag_logits(plain))
        assert alone.attention is None
        if options["name"] == "dsmil":
            assert torch.equal(alone.extras["critical"], plain.extras["critical"])
            label = torch.tensor(2)
            for term, loss in model.losses(alone, label).items():
                torch.testing.assert_close(loss, model.losses(plain, label)[term])

    def test_of_chosen_rows_is_that_of_a_copy(self, options: dict[str, object], budget: int) -> None:
        model, features = self.model(options, budget), self.features()
        index = torch.randperm(2500, generator=torch.Generator().manual_seed(2))[:1500]
        with torch.inference_mode():
            chosen = model(features, index, instances=False)
            torch.testing.assert_close(chosen.logits, model(features[index], instances=False).logits)

    def test_is_near_in_bfloat16(self, options: dict[str, object], budget: int) -> None:
        model, features = self.model(options, budget).float(), self.features().float()
        with torch.inference_mode():
            exact = model(features, instances=False).probabilities
            with torch.autocast("cpu", torch.bfloat16):
                near = model(features, instances=False).probabilities
        torch.testing.assert_close(near.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("misled", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_guess_of_critical_instances_costs_a_pass_and_changes_nothing(
    misled: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = models.build(models.parse({"name": "dsmil", "dim": 16}), D, 3).train(training)
    model.activation_bytes = 0
    features, counts, looked = torch.randn(2500, D), list[int](), OnlineMax.add

    def coarse(rows: Rows) -> Rows:
        seen = rows.features.flip(0) if misled else rows.features
        return Rows(seen, rows.index, rows.device, rows.dtype)

    def add(self: OnlineMax, scores: Tensor, rows: Tensor) -> None:
        counts.append(len(rows))
        looked(self, scores, rows)

    monkeypatch.setattr(Rows, "coarse", lambda rows: None)
    torch.manual_seed(1)
    with torch.inference_mode():
        exact = model(features, instances=False)
    monkeypatch.setattr(Rows, "coarse", coarse)
    monkeypatch.setattr(OnlineMax, "add", add)
    torch.manual_seed(1)
    with torch.inference_mode():
        guessed = model(features, instances=False)
    assert sum(counts) == 2500 * (3 if misled else 2)
    assert torch.equal(guessed.extras["critical"], exact.extras["critical"])
    torch.testing.assert_close(guessed.logits, exact.logits)
    torch.testing.assert_close(guessed.bag_embedding, exact.bag_embedding)


def test_equal_instances_are_one_guess() -> None:
    torch.manual_seed(0)
    model = models.build(models.parse({"name": "dsmil", "dim": 16}), D, 3).eval()
    model.activation_bytes = 0
    features = torch.randn(300, D).repeat(5, 1)
    with torch.inference_mode():
        alone = model(features, instances=False)
    plain = model(features)
    torch.testing.assert_close(alone.logits, plain.logits)
    assert torch.equal(features[alone.extras["critical"]], features[plain.extras["critical"]])


def test_what_the_user_has_set_of_the_caches_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "77")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    bound_caches(5)
    assert os.environ["LRU_CACHE_CAPACITY"] == "77"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "5"
