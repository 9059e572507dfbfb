"""Bags of a cohort, ready to train on: checked together, read from disk, kept in memory by budget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhim.bag import Bag, load_bag
from mhim.cohort import Cohort, SlideRow
from mhim.config import fingerprint
from mhim.errors import CohortError, FeatureError

MEMORY_BUDGET_BYTES = 4 << 30
CONTENT_ATTRIBUTES = ("encoder", "encoder_weights_sha256", "mpp", "tile_size_level0")
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
    """Bags in a folder, ``<slide_id>.h5``, read once and kept while the memory budget lasts."""

    def __init__(self, folder: Path, cohort: Cohort, budget_bytes: int = MEMORY_BUDGET_BYTES) -> None:
        self.folder = folder
        self.cohort = cohort
        self._budget_bytes = budget_bytes
        self._kept: dict[str, Bag] = {}

    def path(self, slide_id: str) -> Path:
        """The bag file of a slide."""
        return self.folder / f"{slide_id}.h5"

    def bag(self, slide_id: str) -> Bag:
        """The bag of a slide.

        Raises:
            FeatureError: the file cannot be used; names it.
        """
        if slide_id in self._kept:
            return self._kept[slide_id]
        bag = load_bag(self.path(slide_id))
        if bag.features.nbytes <= self._budget_bytes:
            self._budget_bytes -= bag.features.nbytes
            self._kept[slide_id] = bag
        return bag

    def labelled(self, row: SlideRow) -> LabelledBag:
        """One slide with its label."""
        features = torch.from_numpy(self.bag(row.slide_id).features)
        return LabelledBag(row.slide_id, row.case_id, features, torch.tensor(self.cohort.label_index(row)))

    def truth(self, slide_id: str) -> Tensor | None:
        """Instance truth (N,) of a slide, where its bag has one; for those who watch, never for those who train."""
        share = self.bag(slide_id).annotation_fraction
        return None if share is None else torch.from_numpy(share)

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
        return (self[index] for index in range(len(self)))

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
        parts = [self._store.bag(row.slide_id).features for row in self.rows_of(case)]
        features = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return LabelledBag(case, case, features, self.targets[index])

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
    common = _common(store, present)
    known = {row.slide_id for row in cohort}
    unlabelled = tuple(sorted(path.stem for path in store.folder.glob("*.h5") if path.stem not in known))
    identity = [
        (row.slide_id, row.case_id, cohort.outcome(row), content_digest(store.bag(row.slide_id))) for row in present
    ]
    features = CohortFeatures(
        in_dim=common[0],
        data_fingerprint=fingerprint([identity, cohort.classes]),
        encoder=common[1],
        mpp=common[2],
        unlabelled=unlabelled,
        slides=tuple((slide_id, (case_id, label, digest)) for slide_id, case_id, label, digest in identity),
    )
    return replace(cohort, rows=present), features


def content_digest(bag: Bag) -> str:
    """16 hexadecimal digits that identify what is learned from: features, their type, coordinates, encoder, scale.

    Where the file lies, and where its slide lay, is no part of it.
    """
    facts = [bag.features.dtype.str, bag.features.shape, *(bag.attributes.get(key) for key in CONTENT_ATTRIBUTES)]
    digest = hashlib.sha256(fingerprint([str(fact) for fact in facts]).encode())
    digest.update(np.ascontiguousarray(bag.features).data)
    if bag.xy_px0 is not None:
        digest.update(np.ascontiguousarray(bag.xy_px0).data)
    return digest.hexdigest()[:16]


def _common(store: BagStore, rows: Sequence[SlideRow]) -> tuple[int, str | None, float | None]:
    """Width, encoder and mpp of all bags; the mpp is that of the bags that say one."""
    first: dict[str, tuple[Any, Path]] = {}
    for row in rows:
        bag, path = store.bag(row.slide_id), store.path(row.slide_id)
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
            other, where = first.setdefault(name, (value, path))
            alike = abs(value / other - 1) <= SAME_MPP if name == "mpp" else value == other
            if not alike:
                raise FeatureError(
                    f"{path}: this slide has {name} {value}, but {where.name} has {other}; encode all slides alike"
                )
    return first["feature width"][0], first["encoder"][0], first.get("mpp", (None, None))[0]


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
