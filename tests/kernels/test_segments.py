"""Several bags in one tensor: every operation equals its plain form on each bag's part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhim.kernels import Bags, Segments, branch_scores, exact_linear, segment_pool, segment_softmax
from mhim.models.layers import AttentionScores

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=7)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(scores: Tensor, tokens: Tensor, sizes: list[int]) -> Tensor:
    parts = zip(scores.split(sizes, 1), tokens.split(sizes), strict=True)
    return torch.stack([score.softmax(dim=1) @ part for score, part in parts])


@given(sizes=SIZES, branches=st.integers(1, 3), scale=st.sampled_from([1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_pooling_is_that_of_each_part(sizes: list[int], branches: int, scale: float) -> None:
    total = sum(sizes)
    scores = (scale * rows(branches, total, 1)).requires_grad_()
    tokens = rows(total, 5, 2).requires_grad_()
    wanted = rows(len(sizes) * branches, 5, 3).view(len(sizes), branches, 5)
    found, expected = segment_pool(scores, tokens, Segments(sizes, CPU)), plain(scores, tokens, sizes)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((one * wanted).sum(), (scores, tokens)) for one in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@given(sizes=SIZES)
@settings(max_examples=20, deadline=None)
def test_shares_of_each_bag_are_its_softmax(sizes: list[int]) -> None:
    scores = 50 * rows(2, sum(sizes))
    expected = torch.cat([part.softmax(dim=1) for part in scores.split(sizes, 1)], dim=1)
    torch.testing.assert_close(segment_softmax(scores, Segments(sizes, CPU)), expected)


def test_tokens_of_low_precision_are_summed_in_the_scores_precision() -> None:
    scores, tokens, sizes = rows(1, 3000).float(), rows(3000, 4).bfloat16(), [1000, 2000]
    found = segment_pool(scores, tokens, Segments(sizes, CPU))
    torch.testing.assert_close(found, plain(scores, tokens.float(), sizes))


def test_rows_know_their_bag_and_parts_their_place() -> None:
    segments = Segments([2, 1, 3], CPU)
    assert segments.bag_of.tolist() == [0, 0, 1, 2, 2, 2]
    assert list(segments.places) == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert segments.spread(torch.tensor([7, 8, 9])).tolist() == [7, 7, 8, 9, 9, 9]
    assert [part.tolist() for part in segments.split(torch.arange(6))] == [[0, 1], [2], [3, 4, 5]]


@given(sizes=SIZES, data=st.data())
@settings(max_examples=20, deadline=None)
def test_chosen_rows_are_those_of_each_bag(sizes: list[int], data: st.DataObject) -> None:
    bags = Bags([rows(size, 3, seed) for seed, size in enumerate(sizes)])
    kept = [torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))) for size in sizes]
    index, segments = bags.chosen(kept)
    expected = [bag[part] for bag, part in zip(bags, kept, strict=True)]
    assert torch.equal(bags.together[index], torch.cat(expected))
    assert segments.sizes == tuple(len(part) for part in kept)


@pytest.mark.parametrize(("gated", "act"), [(False, "relu"), (True, "tanh"), (False, "tanh")])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_are_the_plain_layer(gated: bool, act: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer = AttentionScores(6, 4, 2, act, gated, bias).double()
    tokens = rows(40, 6).requires_grad_()
    branches = layer.branches()
    assert branches is not None
    found, expected = branch_scores(tokens, branches), layer(tokens)
    torch.testing.assert_close(found, expected)
    weight = rows(2, 40, 9)
    inputs = (tokens, *layer.parameters())
    ours, theirs = (torch.autograd.grad((one * weight).sum(), inputs) for one in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_branches_are_dropped_at_their_rate() -> None:
    """With all factors 1 a score is the mean of what was kept, scaled up."""
    layer = AttentionScores(1, 20_000, 1, "relu", gated=False, bias=False, dropout=0.25).double().train()
    with torch.no_grad():
        layer.value.weight.fill_(1)
        layer.score.weight.fill_(1 / 20_000)
        branches = layer.branches()
        assert branches is not None
        found = branch_scores(torch.ones(5, 1, dtype=torch.float64), branches)
    assert ((found - 1).abs() < 5 * (0.25 / 0.75 / 20_000) ** 0.5).all()
    assert len(set(found[0].tolist())) > 1


def test_a_small_product_keeps_its_precision_under_autocast() -> None:
    x, weight = rows(50, 8).float(), rows(3, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = exact_linear(x, weight)
    torch.testing.assert_close(found, x @ weight.T)
