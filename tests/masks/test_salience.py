"""Masks of the HAM family: closed forms, laws, edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.errors import ConfigError
from mhim.masks import masks
from mhim.masks.salience import ceil_share, decayed_ratio, rank_instances


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strategy(name: str = "lr-ham", **options: object):
    return masks.build(masks.parse({"name": name, "high_decay": "none", **options}))


def select(scores: torch.Tensor, seed: int = 0, progress: float = 0.0, **options: object):
    return strategy(**options).select(scores, progress, generator(seed))


def test_counts_round_up_in_double_precision() -> None:
    assert ceil_share(100, 0.07) == 8
    assert ceil_share(100, 0.5) == 50
    assert ceil_share(7, 0.01) == 1
    assert ceil_share(5, 0.0) == 0


def test_decay_is_half_a_cosine() -> None:
    assert decayed_ratio(0.03, 0.0) == pytest.approx(0.03)
    assert decayed_ratio(0.01, 265 / 53200) == pytest.approx(0.00999938779147265, rel=1e-12)
    assert decayed_ratio(0.01, 26600 / 53200) == pytest.approx(0.005, rel=1e-12)


def test_ham_masks_exactly_the_top() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.0, 0.05, 0.4, 0.5, 0.6]])
    selection = select(scores, name="ham", mask_ratio_high=0.2)
    assert selection.high.nonzero()[:, 0].tolist() == [1, 3]
    assert selection.keep_index.tolist() == [0, 2, 4, 5, 6, 7, 8, 9]


def test_low_and_high_sets_are_taken_on_the_whole_bag() -> None:
    scores = torch.arange(10.0)[None]
    selection = select(scores, name="l-ham", mask_ratio_low=0.5, mask_ratio_high=0.2, high_candidate_factor=1.0)
    assert selection.keep_index.tolist() == [5, 6, 7]


def test_random_high_takes_its_share_from_the_candidates() -> None:
    scores = torch.randperm(1000, generator=generator(3)).double()[None]
    options = {"name": "ham", "mask_ratio_high": 0.1, "high_candidate_factor": 0.5}
    first, second = select(scores, seed=1, **options), select(scores, seed=2, **options)
    candidates = set(scores[0].topk(200).indices.tolist())
    for selection in (first, second):
        masked = set(selection.high.nonzero()[:, 0].tolist())
        assert len(masked) == 100
        assert masked <= candidates
    assert not torch.equal(first.high, second.high)
    assert torch.equal(first.high, select(scores, seed=1, **options).high)


def test_random_set_is_uniform() -> None:
    """Each instance is masked in a share r of the draws (here 2000 draws, 5 standard errors)."""
    scores = torch.arange(20.0)[None]
    r_ham = strategy("r-ham", mask_ratio_random=0.3, mask_ratio_high=0.0)
    source = generator(5)
    counts = torch.stack([r_ham.select(scores, 0.0, source).random for _ in range(2000)]).double().mean(dim=0)
    assert (counts - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_votes_decide_and_ties_go_to_the_mean_then_the_index() -> None:
    scores = torch.tensor(
        [
            [9.0, 8.0, 1.0, 0.0, 5.0],
            [9.0, 1.0, 8.0, 0.0, 5.0],
            [0.0, 1.0, 1.0, 9.0, 8.0],
        ]
    )
    # two marks per head: instance 0 has two votes; 1, 2, 3 and 4 have one each; means 18/3, 10/3, 10/3, 9/3, 18/3
    assert rank_instances(scores, 2, True, "vote").tolist() == [0, 4, 1, 2, 3]


def test_equal_heads_vote_like_one_head() -> None:
    scores = torch.randn(1, 400, generator=generator(1))
    one = select(scores, name="l-ham", mask_ratio_low=0.8, high_candidate_factor=1.0)
    eight = select(scores.repeat(8, 1), name="l-ham", mask_ratio_low=0.8, high_candidate_factor=1.0)
    assert torch.equal(one.keep_index, eight.keep_index)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 60),
    heads=st.sampled_from([1, 2, 8]),
    high=st.floats(0, 0.5),
    factor=st.floats(0.5, 1),
    low=st.floats(0, 0.49),
    random=st.floats(0, 0.999),
    fusion=st.sampled_from(["vote", "mean"]),
    progress=st.floats(0, 0.999),
    seed=st.integers(0, 100),
)
def test_kept_and_masked_make_the_bag_and_something_is_kept(
    size: int,
    heads: int,
    high: float,
    factor: float,
    low: float,
    random: float,
    fusion: str,
    progress: float,
    seed: int,
) -> None:
    scores = torch.randn(heads, size, generator=generator(seed))
    selection = select(
        scores,
        seed,
        progress,
        high_decay="cosine",
        mask_ratio_high=high,
        high_candidate_factor=factor,
        mask_ratio_low=low,
        mask_ratio_random=random,
        fusion=fusion,
    )
    masked = selection.high | selection.low | selection.random
    assert len(selection.keep_index) >= 1
    assert torch.equal((~masked).nonzero()[:, 0], selection.keep_index)
    assert selection.kept_share == len(selection.keep_index) / size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_published_settings_never_mask_a_small_bag_away(size: int) -> None:
    """The published program keeps nothing here (section 10.2); ours keeps at least one instance."""
    scores = torch.rand(1, size, generator=generator(size))
    for seed in range(20):
        for options in (
            {"name": "l-ham", "mask_ratio_low": 0.8, "mask_ratio_high": 0.03},
            {"name": "lr-ham"},
            {"name": "r-ham"},
            {"name": "ham", "mask_ratio_high": 0.5},
        ):
            assert len(select(scores, seed, **options).keep_index) >= 1


def test_the_released_instance_is_the_last_that_deserves_masking() -> None:
    """All masked by L and R: the most salient instance outside H comes back, and H stays masked."""
    scores = torch.tensor([[0.1, 0.2, 0.9]])
    selection = select(scores, name="l-ham", mask_ratio_low=0.6, mask_ratio_high=0.3, high_candidate_factor=1.0)
    assert selection.keep_index.tolist() == [1]


def test_a_bag_below_the_minimum_is_not_masked() -> None:
    selection = select(torch.rand(1, 9), name="r-ham", min_instances=10)
    assert selection.keep_index.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ham", "mask_ratio_high": 0.6, "high_candidate_factor": 0.5}, "exceeds 1"),
        ({"name": "ham", "high_candidate_factor": 0.0}, "greater than 0"),
        ({"name": "lr-ham", "mask_ratio_low": 0.7, "mask_ratio_high": 0.3}, "nothing would be kept"),
        ({"name": "lr-ham", "mask_ratio_random": 1.0}, "less than 1"),
        ({"name": "ham", "mask_ratio_low": 0.1}, "mask_ratio_low"),
        ({"name": "ham", "mask_ratio_hgih": 0.1}, "unknown key 'mask_ratio_hgih'"),
        ({"name": "hamm"}, "unknown mask 'hamm' (known: ham, l-ham, lr-ham, r-ham)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        masks.parse(options)
    assert message in str(caught.value)
