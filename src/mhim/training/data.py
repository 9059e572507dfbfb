"""Bags of a cohort, ready to train on: checked together, read from disk, kept in memory by budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mhim.artefacts import quick_digest
from mhim.bag import Bag, load_bag, read_attributes
from mhim.cohort import Cohort, SlideRow
from mhim.config import fingerprint
from mhim.errors import CohortError, FeatureError

MEMORY_BUDGET_BYTES = 4 << 30
SAME_MPP = 0.02


@dataclass(frozen=True)
class LabelledBag:
    """One slide for the trainer: its features (N, D) as stored, and its class index."""

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


@dataclass(frozen=True)
class CohortFeatures:
    """What the bags of a cohort have in common, and what identifies them."""

    in_dim: int
    data_fingerprint: str
    encoder: str | None
    mpp: float | None
    unlabelled: tuple[str, ...]


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
    missing = [row.slide_id for row in cohort if not store.path(row.slide_id).is_file()]
    if missing and not allow_missing:
        raise CohortError(
            f"{store.folder}: {len(missing)} of {len(cohort)} slides of {cohort.source} have no bag (first: "
            f"{missing[0]}.h5); encode them, or go on without them with --allow-missing"
        )
    present = tuple(row for row in cohort if row.slide_id not in set(missing))
    if not present:
        raise CohortError(f"{store.folder}: no slide of {cohort.source} has a bag here; do the slide_ids match?")
    common = _common(store, present)
    known = {row.slide_id for row in cohort}
    unlabelled = tuple(sorted(path.stem for path in store.folder.glob("*.h5") if path.stem not in known))
    identity = [(row.slide_id, row.case_id, row.label, quick_digest(store.path(row.slide_id))) for row in present]
    features = CohortFeatures(
        in_dim=common[0],
        data_fingerprint=fingerprint([identity, cohort.classes]),
        encoder=common[1],
        mpp=common[2],
        unlabelled=unlabelled,
    )
    return Cohort(cohort.source, present, cohort.classes), features


def _common(store: BagStore, rows: Sequence[SlideRow]) -> tuple[int, str | None, float | None]:
    first: tuple[int, str | None, float | None] | None = None
    for row in rows:
        path = store.path(row.slide_id)
        attributes = read_attributes(path)
        encoder = attributes.get("encoder")
        mpp = attributes.get("mpp")
        found = (store.bag(row.slide_id).features.shape[1], encoder, None if mpp is None else float(mpp))
        first = first or found
        other = (
            f"{path}: this slide has {{}}, but {store.path(rows[0].slide_id).name} has {{}}; encode all slides alike"
        )
        if found[0] != first[0]:
            raise FeatureError(other.format(f"{found[0]} features", first[0]))
        if found[1] != first[1]:
            raise FeatureError(other.format(f"encoder {found[1]}", first[1]))
        if found[2] and first[2] and abs(found[2] / first[2] - 1) > SAME_MPP:
            raise FeatureError(other.format(f"mpp {found[2]:g}", f"{first[2]:g}"))
    assert first is not None
    return first
