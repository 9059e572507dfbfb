"""HAM and its relatives: mask by the teacher's salience (MHIM-MIL, ICCV 2023, section 3.2).

Ratios are shares of the bag's N instances. Three sets are computed on the whole bag and united:
a random set R, a low set L and a high set H. Counts are rounded up, in double precision.
HAM masks H; R-HAM R and H; L-HAM L and H; LR-HAM all three.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from mhim.config import ComponentConfig
from mhim.kernels import to_device
from mhim.masks.contract import MaskSelection, MaskStrategy, masks


class SalienceMaskConfig(ComponentConfig):
    """Options of the HAM family."""

    mask_ratio_high: float = Field(0.01, ge=0, lt=1, description="share masked as most salient, at the start")
    high_candidate_factor: float = Field(
        1.0, gt=0, le=1, description="H is drawn at random from the top mask_ratio_high / factor; 1 takes the very top"
    )
    mask_ratio_low: float = Field(0.0, ge=0, lt=1, description="share masked as least salient")
    mask_ratio_random: float = Field(0.0, ge=0, lt=1, description="share masked at random")
    high_decay: Literal["cosine", "none"] = Field("cosine", description="course of mask_ratio_high over training")
    fusion: Literal["vote", "mean"] = Field("vote", description="how several heads agree on one set")
    min_instances: int = Field(2, ge=2, description="smaller bags are not masked")

    @model_validator(mode="after")
    def _leaves_something(self) -> SalienceMaskConfig:
        if self.mask_ratio_high > self.high_candidate_factor:
            raise ValueError("mask_ratio_high / high_candidate_factor exceeds 1: the high set would be purely random")
        # R overlaps L and H by chance, L and H do not: the expected kept share is (1 - r)(1 - l - h)
        if self.mask_ratio_low + self.mask_ratio_high >= 1:
            raise ValueError("mask_ratio_low + mask_ratio_high must stay below 1: nothing would be kept")
        return self


def ceil_share(count: int, ratio: float) -> int:
    """ceil(count * ratio) in double precision, so that 0.07 of 100 is 8 as in the published program."""
    return min(count, math.ceil(count * ratio))


def decayed_ratio(ratio: float, progress: float) -> float:
    """Half a cosine from ``ratio`` to 0: ratio/2 (1 + cos(pi progress)) (section 4.1)."""
    return 0.5 * ratio * (1 + math.cos(math.pi * progress))


def _first(order: Int[Tensor, " chosen"], count: int, size: int | None = None) -> Bool[Tensor, " instances"]:
    """Boolean mask (``size``,) of the first ``count`` entries of (part of) a permutation."""
    chosen = torch.zeros(size or len(order), dtype=torch.bool, device=order.device)
    chosen[order[:count]] = True
    return chosen


def rank_instances(
    salience: Float[Tensor, "head instances"], count: int, highest: bool, fusion: str
) -> Int[Tensor, " instances"]:
    """All instances, most deserving of the high (or low) set first.

    Vote: every head marks its ``count`` extreme instances; more votes first. Ties go to the more
    extreme mean score over heads, then to the smaller index.

    Args:
        salience: (head, N).
        count: how many instances each head marks.
        highest: rank from the top, else from the bottom.
        fusion: "vote", or "mean" (each head gives floor(count / heads), united; these come first).
    """
    heads = len(salience)
    by_mean = salience.mean(dim=0).argsort(descending=highest, stable=True)
    if heads == 1:
        return by_mean
    marks = count if fusion == "vote" else count // heads
    per_head = salience.argsort(dim=1, descending=highest, stable=True)[:, :marks]
    votes = torch.zeros_like(salience, dtype=torch.int64).scatter_(1, per_head, 1).sum(dim=0)
    if fusion == "mean":
        votes = votes.clamp(max=1)
    return by_mean[votes[by_mean].argsort(descending=True, stable=True)]


def extreme_set(
    salience: Float[Tensor, "head instances"], count: int, highest: bool, fusion: str
) -> tuple[Int[Tensor, " instances"], int]:
    """The ranking and how many of its first entries form the set (fewer than ``count`` under "mean")."""
    order = rank_instances(salience, count, highest, fusion)
    heads = len(salience)
    if fusion == "mean" and heads > 1:
        per_head = salience.argsort(dim=1, descending=highest, stable=True)[:, : count // heads]
        count = int(per_head.unique().numel())
    return order, count


class SalienceMask(MaskStrategy):
    """R, L and H united; what is left, in ascending order, is what the student sees.

    Where one ranking of the bag serves both ends (one head, or one of the two sets alone), everything is decided
    on ranks: which ranks are masked is known without looking at the scores, so an accelerator is never waited
    for. Several heads that vote for a low and for a high set rank the bag twice, and how far their sets overlap
    must be asked of the device.
    """

    Config = SalienceMaskConfig
    config: SalienceMaskConfig

    def select(
        self, salience: Float[Tensor, "head instances"], progress: float, generator: torch.Generator
    ) -> MaskSelection:
        """See :meth:`MaskStrategy.select`; never keeps fewer than one instance."""
        heads, size = salience.shape
        config = self.config
        if size < config.min_instances:
            nothing = torch.zeros(size, dtype=torch.bool, device=salience.device)
            return MaskSelection(torch.arange(size, device=salience.device), nothing, nothing, nothing)
        random = self._random(size, generator)
        has_low, has_high = config.mask_ratio_low > 0, config.mask_ratio_high > 0
        if heads > 1 and has_low and has_high:
            high, low = self._high(salience, progress, generator), self._low(salience)
            return select_by_instance(to_device(random, salience.device), low, high, salience)
        lows = ceil_share(size, config.mask_ratio_low)
        if has_low and not has_high:
            order, lows = extreme_set(salience, lows, False, config.fusion)
            order, highs = order.flip(0), torch.zeros(0, dtype=torch.int64)
        else:
            order, candidates = self._candidates(salience, progress)
            highs = self._drawn(candidates, generator)
        return select_by_rank(order, highs, lows, random)

    def _random(self, size: int, generator: torch.Generator) -> Bool[Tensor, " instances"]:
        """The random set, on the CPU; over ranks or over instances, which is the same to chance."""
        count = ceil_share(size, self.config.mask_ratio_random)
        if count == 0:
            return torch.zeros(size, dtype=torch.bool)
        return _first(torch.randperm(size, generator=generator), count)

    def _low(self, salience: Float[Tensor, "head instances"]) -> Bool[Tensor, " instances"]:
        count = ceil_share(salience.shape[1], self.config.mask_ratio_low)
        return _first(*extreme_set(salience, count, False, self.config.fusion))

    def _high(
        self, salience: Float[Tensor, "head instances"], progress: float, generator: torch.Generator
    ) -> Bool[Tensor, " instances"]:
        order, candidates = self._candidates(salience, progress)
        ranks = to_device(self._drawn(candidates, generator), order.device)
        return _first(order[ranks], len(ranks), len(order))

    def _candidates(
        self, salience: Float[Tensor, "head instances"], progress: float
    ) -> tuple[Int[Tensor, " instances"], int]:
        """The ranking from the top, and how many of its first may be masked as salient."""
        config, ratio = self.config, self.config.mask_ratio_high
        if config.high_decay == "cosine":
            ratio = decayed_ratio(ratio, progress)
        count = ceil_share(salience.shape[1], ratio / config.high_candidate_factor)
        return extreme_set(salience, count, True, config.fusion)

    def _drawn(self, candidates: int, generator: torch.Generator) -> Int[Tensor, " high"]:
        """Ranks of the high set among the candidates, on the CPU."""
        factor = self.config.high_candidate_factor
        if factor == 1:
            return torch.arange(candidates)
        return torch.randperm(candidates, generator=generator)[: ceil_share(candidates, factor)]


def select_by_rank(
    order: Int[Tensor, " instances"],
    highs: Int[Tensor, " high"],
    lows: int,
    random: Bool[Tensor, " instances"],
) -> MaskSelection:
    """Masks decided on ranks, which the CPU knows, and carried to the instances by the device.

    When all would be masked one rank is released: the first that only R masks, else the first of L outside H, else
    the last of H.

    Args:
        order: (N,) the instances, most salient first, on the device.
        highs: ranks of the high set, on the CPU.
        lows: how many of the last ranks form the low set.
        random: (N,) over ranks, on the CPU.
    """
    size = len(order)
    high, low = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    high[highs], low[size - lows :] = True, True
    random = random.clone()
    if bool((high | low | random).all()):
        for pool, place in ((random & ~low & ~high, 0), (low & ~high, 0), (high, -1)):
            if bool(pool.any()):
                freed = pool.nonzero()[place, 0]
                high[freed] = low[freed] = random[freed] = False
                break
    kept = to_device((~(high | low | random)).nonzero()[:, 0], order.device)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(size, device=order.device))
    high, low, random = (to_device(part, order.device)[back] for part in (high, low, random))
    return MaskSelection(order[kept].sort().values, high, low, random)


def select_by_instance(
    random: Bool[Tensor, " instances"],
    low: Bool[Tensor, " instances"],
    high: Bool[Tensor, " instances"],
    salience: Float[Tensor, "head instances"],
) -> MaskSelection:
    """Masks decided on instances. How many are left is the one question that the device is asked."""
    kept = (~(random | low | high)).nonzero()[:, 0]
    if len(kept) == 0:
        random, low, high = keep_one(random, low, high, salience)
        kept = (~(random | low | high)).nonzero()[:, 0]
    return MaskSelection(kept, high, low, random)


def keep_one(
    random: Bool[Tensor, " instances"],
    low: Bool[Tensor, " instances"],
    high: Bool[Tensor, " instances"],
    salience: Float[Tensor, "head instances"],
) -> tuple[Bool[Tensor, " instances"], Bool[Tensor, " instances"], Bool[Tensor, " instances"]]:
    """The three sets, with one instance released when together they mask the whole bag.

    It is taken from the instances that only R masks, else from L outside H, else from H; among
    those, the most salient one of R or L, the least salient one of H.
    """
    if not bool((random | low | high).all()):
        return random, low, high
    score = salience.mean(dim=0)
    for pool, sign in ((random & ~low & ~high, 1), (low & ~high, 1), (high, -1)):
        if bool(pool.any()):
            freed = torch.where(pool, sign * score, torch.full_like(score, -torch.inf)).argmax()
            mask = torch.arange(len(score), device=score.device) != freed
            return random & mask, low & mask, high & mask
    return random, low, high


@masks.register("ham")
class HAM(SalienceMask):
    """High-attention masking alone."""

    class Config(SalienceMaskConfig):
        """HAM: no random and no low set."""

        mask_ratio_low: float = Field(0.0, ge=0, le=0, description="not used by HAM")
        mask_ratio_random: float = Field(0.0, ge=0, le=0, description="not used by HAM")


@masks.register("r-ham")
class RHAM(SalienceMask):
    """Random and high masking; defaults of AB-MIL on CAMELYON16 (table 4.7)."""

    class Config(SalienceMaskConfig):
        """R-HAM: no low set."""

        high_candidate_factor: float = Field(
            0.5, gt=0, le=1, description="H is drawn at random from the top mask_ratio_high / factor"
        )
        mask_ratio_low: float = Field(0.0, ge=0, le=0, description="not used by R-HAM")
        mask_ratio_random: float = Field(0.5, ge=0, lt=1, description="share masked at random")


@masks.register("l-ham")
class LHAM(SalienceMask):
    """Low and high masking; defaults of TransMIL on CAMELYON16."""

    class Config(SalienceMaskConfig):
        """L-HAM: no random set."""

        mask_ratio_high: float = Field(0.03, ge=0, lt=1, description="share masked as most salient, at the start")
        high_candidate_factor: float = Field(
            0.5, gt=0, le=1, description="H is drawn at random from the top mask_ratio_high / factor"
        )
        mask_ratio_low: float = Field(0.8, ge=0, lt=1, description="share masked as least salient")
        mask_ratio_random: float = Field(0.0, ge=0, le=0, description="not used by L-HAM")


@masks.register("lr-ham")
class LRHAM(SalienceMask):
    """Low, random and high masking; defaults of AB-MIL on TCGA-NSCLC."""

    class Config(SalienceMaskConfig):
        """LR-HAM: all three sets."""

        mask_ratio_high: float = Field(0.02, ge=0, lt=1, description="share masked as most salient, at the start")
        mask_ratio_low: float = Field(0.2, ge=0, lt=1, description="share masked as least salient")
        mask_ratio_random: float = Field(0.7, ge=0, lt=1, description="share masked at random")
