"""Which slides a cohort has: case, label, scanner, kinds of tumour and seed of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mhim.synth.config import SynthConfig

NORMAL, TUMOUR = "normal", "tumour"
SALIENT, SUBTLE = "salient", "subtle"


@dataclass(frozen=True)
class SlidePlan:
    """One slide to make.

    Attributes:
        slide_id, case_id: names.
        label: ``normal`` or ``tumour``; all slides of a case have the same one.
        scanner: ``A`` or ``B``; all slides of a case have the same one.
        kinds: kinds of tumour on the slide, empty for a normal slide.
        tumour_share: wanted tumour area as a share of the tissue, 0 for a normal slide.
        case_seed, seed: seeds of what the slides of a case have in common, and of the slide itself.
    """

    slide_id: str
    case_id: str
    label: str
    scanner: str
    kinds: tuple[str, ...]
    tumour_share: float
    case_seed: int
    seed: int


def plan_cohort(config: SynthConfig) -> list[SlidePlan]:
    """The slides of a cohort, in order of their names; depends on the configuration only.

    Positive cases and scanners are dealt out at random but evenly, the scanners within each label. The shares of
    tumour are log-uniform strata in random order, so that even a small cohort spans the whole range.
    """
    cases, slides = (np.random.SeedSequence(config.seed, spawn_key=(key,)) for key in (1, 2))
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    is_positive = _positive_cases(config, rng)
    scanner = _scanners(is_positive, rng)
    case_seed, slide_seed = cases.generate_state(config.n_cases), slides.generate_state(config.n_slides)
    case_of = np.sort(_case_of_slide(config, rng))
    tumour = iter(_tumours(config, int(is_positive[case_of].sum()), rng))
    plans = []
    for index, case in enumerate(case_of.tolist()):
        kinds, share = next(tumour) if is_positive[case] else ((), 0.0)
        plans.append(
            SlidePlan(
                slide_id=f"synth-{index + 1:03d}",
                case_id=f"case-{case + 1:03d}",
                label=TUMOUR if is_positive[case] else NORMAL,
                scanner=scanner[case],
                kinds=kinds,
                tumour_share=share,
                case_seed=int(case_seed[case]),
                seed=int(slide_seed[index]),
            )
        )
    return plans


def _positive_cases(config: SynthConfig, rng: np.random.Generator) -> np.ndarray:
    """Whether each case is positive, bool (case,); at least one case of each label."""
    n_positive = min(max(round(config.n_cases * config.positive_fraction), 1), config.n_cases - 1)
    return rng.permutation(config.n_cases) < n_positive


def _scanners(is_positive: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Scanner of each case; within a label the two counts differ by at most one."""
    scanner = np.empty(len(is_positive), dtype="<U1")
    for first, label in enumerate((False, True)):
        members = rng.permutation(np.flatnonzero(is_positive == label))
        scanner[members] = [("A", "B")[(first + rank) % 2] for rank in range(len(members))]
    return scanner.tolist()


def _case_of_slide(config: SynthConfig, rng: np.random.Generator) -> np.ndarray:
    """Case of each slide, int (slide,): counts per case differ by at most one."""
    rounds, extra = divmod(config.n_slides, config.n_cases)
    return np.concatenate([np.tile(np.arange(config.n_cases), rounds), rng.permutation(config.n_cases)[:extra]])


def _tumours(config: SynthConfig, n: int, rng: np.random.Generator) -> list[tuple[tuple[str, ...], float]]:
    """Kinds and share of tumour of the ``n`` positive slides."""
    low, high = np.log(config.tumour_fraction_min), np.log(config.tumour_fraction_max)
    quantile = (rng.permutation(n) + rng.uniform(size=n)) / n
    shares = np.exp(low + quantile * (high - low))
    is_subtle_only = rng.permutation(n) < round(n * config.subtle_only_fraction)
    return [
        ((SUBTLE,) if only else (SALIENT, SUBTLE), float(share))
        for only, share in zip(is_subtle_only, shares, strict=True)
    ]
