"""Bags of a cohort, ready to train on: checked together, mapped from disk, or kept in memory by budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.bag import Bag, content_digest, load_bag, read_truth
from mhim.cohort import Cohort, SlideRow
from mhim.config import fingerprint
from mhim.errors import CohortError, FeatureError
from mhim.training.mapping import ReadAhead, map_features

CACHE_BYTES = 4 << 30
SAME_MPP = 0.02


@dataclass(frozen=True)
class LabelledBag:
    """One slide for the trainer: its features (N, D) as stored, and its class index () int64.

    For survival it is a case: the instances of all its slides, and (2,) int64 with its bin of time and its event.
    """

    slide_id: str
    case_id: str
    features: Tensor
    label: Tensor


class BagStore:
    """Bags in a folder, ``<slide_id>.h5``.

    Features that lie in one piece in their file are mapped: nothing is copied, and processes that train side by side
    use the same memory. Others are read, and kept while the budget lasts.

    Args:
        folder: of the bag files.
        cohort: what the bags are labelled with.
        cache_bytes: budget for features that are read.
        mapped: without it, all are read.
    """

    def __init__(self, folder: Path, cohort: Cohort, cache_bytes: int = CACHE_BYTES, mapped: bool = True) -> None:
        self.folder = folder
        self.cohort = cohort
        self._mapped = mapped
        self._budget_bytes = cache_bytes
        self._kept: dict[str, Tensor] = {}
        self._truth: dict[str, Tensor | None] = {}
        self._read_ahead = ReadAhead()

    def path(self, slide_id: str) -> Path:
        """The bag file of a slide."""
        return self.folder / f"{slide_id}.h5"

    def bag(self, slide_id: str) -> Bag:
        """The whole bag of a slide, with every check of its content.

        Raises:
            FeatureError: the file cannot be used; names it.
        """
        kept = self._kept.get(slide_id)
        if kept is None and self._mapped:
            kept = self._keep(slide_id, map_features(self.path(slide_id)))
        bag = load_bag(self.path(slide_id), None if kept is None else kept.numpy())
        if kept is None and bag.features.nbytes <= self._budget_bytes:
            self._budget_bytes -= bag.features.nbytes
            self._keep(slide_id, torch.from_numpy(bag.features))
        return bag

    def features(self, slide_id: str) -> Float[Tensor, "instances in_dim"]:
        """Features (N, D) of a slide as stored; mapped ones were checked by :func:`check_features` and are not again.

        Raises:
            FeatureError: the file cannot be used; names it.
        """
        if slide_id not in self._kept and self._mapped:
            self._keep(slide_id, map_features(self.path(slide_id)))
        if slide_id in self._kept:
            return self._kept[slide_id]
        features = torch.from_numpy(self.bag(slide_id).features)
        return self._kept.get(slide_id, features)

    def _keep(self, slide_id: str, features: Tensor | None) -> Tensor | None:
        if features is not None:
            self._kept[slide_id] = features
        return features

    def expect(self, slide_id: str) -> None:
        """Have the features of a slide read in the background where they are mapped."""
        if self._mapped:
            self._read_ahead.ask(self.path(slide_id))

    def labelled(self, row: SlideRow) -> LabelledBag:
        """One slide with its label."""
        features, label = self.features(row.slide_id), torch.tensor(self.cohort.label_index(row))
        return LabelledBag(row.slide_id, row.case_id, features, label)

    def truth(self, slide_id: str) -> Tensor | None:
        """Instance truth (N,) of a slide, where its bag has one; for those who watch, never for those who train."""
        if slide_id not in self._truth:
            share = read_truth(self.path(slide_id))
            self._truth[slide_id] = None if share is None else torch.from_numpy(share)
        return self._truth[slide_id]

    def part(self, cases: Sequence[str]) -> BagSet:
        """The slides of some cases."""
        return BagSet(self, tuple(self.cohort.of_cases(cases)))


@dataclass(frozen=True)
class BagSet:
    """Some slides of a store, in table order. Holding one gives no way to the others."""

    _store: BagStore
    rows: tuple[SlideRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledBag:
        return self._store.labelled(self.rows[index])

    def __iter__(self) -> Iterator[LabelledBag]:
        return self.in_order(range(len(self)))

    def in_order(self, order: Sequence[int]) -> Iterator[LabelledBag]:
        """The bags at some positions; while one is used, the next one is read in the background."""
        for index, following in itertools.zip_longest(order, order[1:]):
            bag = self[index]
            if following is not None:
                self.expect(following)
            yield bag

    def expect(self, index: int) -> None:
        """Have a bag read in the background."""
        self._store.expect(self.rows[index].slide_id)

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call each bag."""
        return tuple(row.slide_id for row in self.rows)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The owner of each bag."""
        return tuple(row.case_id for row in self.rows)

    @property
    def cohort(self) -> Cohort:
        """The table that the bags' labels come from."""
        return self._store.cohort

    @property
    def n_slides(self) -> int:
        """Slides behind the bags."""
        return len(self.rows)


@dataclass(frozen=True)
class CaseBags(BagSet):
    """Some cases of a store as one bag each: the instances of all slides of a case, in table order.

    Attributes:
        cases: (M,) the bags' cases.
        targets: (M, 2) int64, what each bag is labelled with.
    """

    cases: tuple[str, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> LabelledBag:
        case = self.cases[index]
        parts = [self._store.features(row.slide_id) for row in self.rows_of(case)]
        return LabelledBag(case, case, parts[0] if len(parts) == 1 else torch.cat(parts), self.targets[index])

    def expect(self, index: int) -> None:
        """Have all slides of a case read in the background."""
        for row in self.rows_of(self.cases[index]):
            self._store.expect(row.slide_id)

    def rows_of(self, case: str) -> tuple[SlideRow, ...]:
        """The slides of a case."""
        return tuple(row for row in self.rows if row.case_id == case)

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call each bag."""
        return self.cases

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The owner of each bag: itself."""
        return self.cases


@dataclass(frozen=True)
class CohortFeatures:
    """What the bags of a cohort have in common, and what identifies them."""

    in_dim: int
    data_fingerprint: str
    encoder: str | None
    mpp: float | None
    unlabelled: tuple[str, ...]
    slides: tuple[tuple[str, tuple[str, str | None, str]], ...] = ()
    """(slide, (case, label, content digest)) in table order."""


def check_features(store: BagStore, allow_missing: bool = False) -> tuple[Cohort, CohortFeatures]:
    """Check every bag of the cohort before any training step.

    Args:
        store: where the bags are.
        allow_missing: go on without the slides that have no bag.

    Returns:
        The cohort of the slides that have bags, and what the bags have in common.

    Raises:
        FeatureError: a bag that cannot be used, or bags of different width, encoder or scale.
        CohortError: slides without a bag.
    """
    cohort = store.cohort
    if not store.folder.is_dir():
        raise FeatureError(f"{store.folder}: no such folder of bags; make it with 'mhim encode' or 'mhim convert'")
    missing = {row.slide_id: None for row in cohort if not store.path(row.slide_id).is_file()}
    if missing and not allow_missing:
        raise CohortError(
            f"{store.folder}: {len(missing)} of {len(cohort)} slides of {cohort.source} have no bag (first: "
            f"{next(iter(missing))}.h5); encode them, or go on without them with --allow-missing"
        )
    present = tuple(row for row in cohort if row.slide_id not in missing)
    if not present:
        raise CohortError(f"{store.folder}: no slide of {cohort.source} has a bag here; do the slide_ids match?")
    common = _Common()
    identity = []
    for row in present:
        bag = store.bag(row.slide_id)
        common.add(bag, store.path(row.slide_id))
        identity.append((row.slide_id, row.case_id, cohort.outcome(row), content_digest(bag)))
    known = {row.slide_id for row in cohort}
    unlabelled = tuple(sorted(path.stem for path in store.folder.glob("*.h5") if path.stem not in known))
    features = CohortFeatures(
        in_dim=common.of("feature width"),
        data_fingerprint=fingerprint([identity, cohort.classes]),
        encoder=common.of("encoder"),
        mpp=common.of("mpp"),
        unlabelled=unlabelled,
        slides=tuple((slide_id, (case_id, label, digest)) for slide_id, case_id, label, digest in identity),
    )
    return replace(cohort, rows=present), features


class _Common:
    """Width, encoder and mpp of all bags; the mpp is that of the bags that say one."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Any, Path]] = {}

    def add(self, bag: Bag, path: Path) -> None:
        """Take in a bag.

        Raises:
            FeatureError: it is not like the first one; names both.
        """
        said = bag.attributes
        mpp = said.get("mpp")
        facts = {
            "feature width": bag.features.shape[1],
            "encoder": said.get("encoder"),
            "encoder weights": said.get("encoder_weights_sha256"),
            "mpp": float(mpp) if mpp else None,
        }
        for name, value in facts.items():
            if name == "mpp" and value is None:
                continue
            other, where = self._first.setdefault(name, (value, path))
            alike = abs(value / other - 1) <= SAME_MPP if name == "mpp" else value == other
            if not alike:
                raise FeatureError(
                    f"{path}: this slide has {name} {value}, but {where.name} has {other}; encode all slides alike"
                )

    def of(self, name: str) -> Any:
        """What all bags have, or None."""
        return self._first.get(name, (None, None))[0]


def feature_statistics(bags: BagSet) -> tuple[Tensor, Tensor]:
    """Mean (D,) and standard deviation (D,) float32 of all instances of some slides.

    A feature that does not vary gets the deviation 1. Sums are taken in double precision.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for bag in bags:
        features = bag.features.double()
        count += len(features)
        total = total + features.sum(dim=0)
        squares = squares + features.square().sum(dim=0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    varies = deviation > 1e-6 * (1 + mean.abs())
    return mean.float(), torch.where(varies, deviation, torch.ones_like(deviation)).float()
