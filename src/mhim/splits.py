"""Splits of cases into training, validation and test part, per fold.

The table has one row per case and one column per fold (``fold_0``, ``fold_1``, ...) whose cells are
``train``, ``val``, ``test``, or empty for a case that a fold leaves out. Columns ``repeat_0``, ``repeat_1``, ... are
repeated splits, whose test parts may overlap. A cell ``val+test`` stands in published protocols only
(``mhim.protocols``), where the test part validates.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import StratifiedKFold

from mhim.artefacts import write_text
from mhim.cohort import Cohort, SurvivalCohort, read_table
from mhim.config import Settings, fingerprint
from mhim.errors import CohortError
from mhim.sites import SiteMode, site_folds

PARTS = ("train", "val", "test")
TIME_GROUPS = 4
FOLD_COLUMN = re.compile(r"(fold|repeat)_\d+")
BOTH = "val+test"


class SplitConfig(Settings):
    """How cases are split."""

    folds: int = Field(5, ge=2, description="number of folds; every case is tested once")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of a fold's non-test cases used for validation")
    seed: int = Field(0, ge=0, description="seed of the assignment")
    use_fold_column: bool = Field(False, description="test folds from the cohort's column 'fold'")
    site: SiteMode = Field(
        "ignore",
        description="stratify folds by site too, preserve (each site in one fold), or leave-one-out (a fold a site)",
    )


@dataclass(frozen=True)
class Fold:
    """Cases of one fold, each part sorted. No case is in two parts, and no part is empty.

    Raises:
        CohortError: a case in two parts, or an empty part.
    """

    index: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = Counter((*self.train, *self.val, *self.test))
        shared = [case for case, count in counts.items() if count > 1]
        if shared:
            raise CohortError(f"fold {self.index}: case {shared[0]} is in more than one part")
        for part in PARTS:
            if not self.part(part):
                raise CohortError(f"fold {self.index}: the {part} part is empty; use fewer folds or more cases")

    @property
    def validates_on_test(self) -> bool:
        """Whether the test part chooses the epoch, as in some published protocols."""
        return False

    def part(self, name: str) -> tuple[str, ...]:
        """The cases of "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class TestSelectedFold(Fold):
    """A fold whose test part also validates: only for published protocols, and never made by :func:`make_splits`.

    Raises:
        CohortError: a case that trains and tests, an empty part, or a validation part that is not the test part.
    """

    __test__ = False

    def __post_init__(self) -> None:
        if self.val != self.test:
            raise CohortError(f"fold {self.index}: validation and test part differ; this is no published fold")
        shared = sorted(set(self.train) & set(self.test))
        if shared:
            raise CohortError(f"fold {self.index}: case {shared[0]} is in more than one part")
        if not self.train or not self.test:
            raise CohortError(f"fold {self.index}: a part is empty; use fewer folds or more cases")

    @property
    def validates_on_test(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class Splits:
    """The folds of a cross-validation; test parts do not overlap, unless they are ``repeated`` splits.

    Raises:
        CohortError: a case is tested in two folds.
    """

    folds: tuple[Fold, ...]
    repeated: bool = False

    def __post_init__(self) -> None:
        if self.repeated:
            return
        tested = Counter(case for fold in self.folds for case in fold.test)
        repeated = [case for case, count in tested.items() if count > 1]
        if repeated:
            raise CohortError(f"splits: case {repeated[0]} is in the test part of more than one fold")

    @property
    def fingerprint(self) -> str:
        """What identifies the folds: the cases of every part."""
        return fingerprint([[fold.train, fold.val, fold.test] for fold in self.folds])

    def only(self, cases: Collection[str]) -> Splits:
        """The same folds without the cases that are not in ``cases``.

        Raises:
            CohortError: a part becomes empty.
        """
        kept = set(cases)
        parts = ((fold, (tuple(c for c in fold.part(part) if c in kept) for part in PARTS)) for fold in self.folds)
        return replace(self, folds=tuple(type(fold)(fold.index, *left) for fold, left in parts))

    def check(self, cohort: Cohort, source: object) -> None:
        """Compare with a cohort.

        Raises:
            CohortError: a case that the cohort does not have, a case of the cohort in no fold, or a
                class that is missing from a training part.
        """
        labels = cohort.case_labels()
        known = {case for fold in self.folds for part in PARTS for case in fold.part(part)}
        for case in sorted(known - labels.keys()):
            raise CohortError(f"{source}: case {case} is not in {cohort.source}; split this cohort again")
        for case in sorted(labels.keys() - known):
            raise CohortError(f"{source}: case {case} of {cohort.source} is in no fold; split this cohort again")
        for fold in self.folds:
            needed = {1} if isinstance(cohort, SurvivalCohort) else set(range(len(cohort.classes)))
            missing = needed - {labels[case] for case in fold.train}
            if missing:
                name = cohort.classes[min(missing)]
                raise CohortError(f"{source}: fold {fold.index} has no case of class '{name}' in training")


def make_splits(cohort: Cohort, config: SplitConfig) -> Splits:
    """Case-grouped, label-stratified folds with an inner validation part; survival: by event and time.

    Raises:
        CohortError: fewer cases of a class than the folds need, or an incomplete column ``fold``.
    """
    labels = cohort.case_labels()
    cases, classes = np.array(list(labels)), np.array(list(labels.values()))
    strata = _strata(cohort, classes, config.folds)
    if config.use_fold_column:
        test_fold = _given_folds(cohort, cases)
    elif config.site == "ignore":
        test_fold = _drawn_folds(cohort, classes, strata, config)
    else:
        test_fold = site_folds(cohort, strata, config.folds, config.seed, config.site)
    folds = []
    for index, number in enumerate(np.unique(test_fold)):
        rest = np.flatnonzero(test_fold != number)
        is_val = draw_validation(strata[rest], config, index)
        with _naming(cohort.source):
            train, val, test = cases[rest[~is_val]], cases[rest[is_val]], cases[test_fold == number]
            folds.append(Fold(index, _names(train), _names(val), _names(test)))
    splits = Splits(tuple(folds))
    splits.check(cohort, cohort.source)
    return splits


@contextlib.contextmanager
def _naming(source: object) -> Iterator[None]:
    """Errors of the block begin with ``source``."""
    try:
        yield
    except CohortError as error:
        raise CohortError(f"{source}: {error}") from None


def _names(cases: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted(str(case) for case in cases))


def _strata(cohort: Cohort, classes: np.ndarray, folds: int) -> np.ndarray:
    """(K,) what cases are stratified by: the class; for survival, ranks of time within events and within the others.

    At most 4 groups of time, and no more than leave each group two cases a fold.
    """
    if not isinstance(cohort, SurvivalCohort):
        return classes
    times, strata = np.array(list(cohort.case_times().values())), np.zeros_like(classes)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        groups = min(TIME_GROUPS, max(1, len(members) // (2 * folds)))
        ranks = times[members].argsort(kind="stable").argsort(kind="stable")
        strata[members] = label * TIME_GROUPS + ranks * groups // len(members)
    return strata


def _drawn_folds(cohort: Cohort, classes: np.ndarray, strata: np.ndarray, config: SplitConfig) -> np.ndarray:
    for index, count in enumerate(np.bincount(classes, minlength=len(cohort.classes))):
        # a fold's rest must still give one case of the class to training and one to validation
        if count == 0 and isinstance(cohort, SurvivalCohort):
            continue  # every case has an event
        if count < config.folds or count - -(-count // config.folds) < 2:
            raise CohortError(
                f"{cohort.source}: {count} cases of class '{cohort.classes[index]}' are too few for {config.folds} "
                f"folds with train, val and test parts; use fewer --folds or add cases"
            )
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    test_fold = np.empty(len(classes), dtype=np.int64)
    for number, (_, test) in enumerate(folds.split(strata, strata)):
        test_fold[test] = number
    return test_fold


def _given_folds(cohort: Cohort, cases: np.ndarray) -> np.ndarray:
    fold_of: dict[str, int] = {}
    for row in cohort:
        if row.fold is None:
            raise CohortError(f"{cohort.source}: slide {row.slide_id} has no value in the column 'fold'")
        if fold_of.setdefault(row.case_id, row.fold) != row.fold:
            raise CohortError(f"{cohort.source}: the slides of case {row.case_id} are in different folds")
    test_fold = np.array([fold_of[case] for case in cases])
    if len(np.unique(test_fold)) < 2:
        raise CohortError(f"{cohort.source}: the column 'fold' names a single fold; give at least two")
    return test_fold


def draw_validation(classes: np.ndarray, config: SplitConfig, index: int) -> np.ndarray:
    """Which of a fold's non-test cases validate: of every class its share, at least one where two are there."""
    generator = np.random.default_rng([config.seed, index])
    is_val = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        count = min(max(1, round(config.val_fraction * len(members))), len(members) - 1)
        is_val[generator.permutation(members)[:count]] = True
    return is_val


def write_splits(path: Path, splits: Splits) -> None:
    """Write the table, one row per case in order of first appearance."""
    cells: dict[str, dict[str, str]] = {}
    kind = "repeat" if splits.repeated else "fold"
    for fold in splits.folds:
        for part in PARTS:
            word = BOTH if fold.validates_on_test and part != "train" else part
            for case in fold.part(part):
                cells.setdefault(case, {})[f"{kind}_{fold.index}"] = word
    table = pd.DataFrame.from_dict(cells, orient="index").fillna("")
    table.index.name = "case_id"
    buffer = io.StringIO()
    table.sort_index().to_csv(buffer, columns=[f"{kind}_{fold.index}" for fold in splits.folds])
    write_text(path, buffer.getvalue())


def read_splits(path: Path) -> Splits:
    """The splits in a table.

    Raises:
        CohortError: missing file or columns, an unknown part, or folds that leak.
    """
    header, records = read_table(path, "make it with 'mhim split'")
    columns = sorted((name for name in header if FOLD_COLUMN.fullmatch(name)), key=lambda name: int(name.split("_")[1]))
    if "case_id" not in header or not columns:
        raise CohortError(f"{path}: expected columns case_id, fold_0, fold_1, ... (found: {', '.join(header)})")
    cases = [record["case_id"] for _, record in records]
    repeated = [case for case, count in Counter(cases).items() if count > 1]
    if repeated:
        raise CohortError(f"{path}: case {repeated[0]} appears more than once")
    parts = [{record["case_id"]: record[column] for _, record in records} for column in columns]
    with _naming(path):
        folds = tuple(_fold(index, part_of) for index, part_of in enumerate(parts))
        return Splits(folds, repeated=columns[0].startswith("repeat"))


def _fold(index: int, part_of: Mapping[str, str]) -> Fold:
    for case, part in part_of.items():
        if part not in ("", BOTH, *PARTS):
            raise CohortError(f"case {case} has part '{part}' in fold {index}; expected train, val or test")
    parts: dict[str, Sequence[str]] = {name: [c for c, part in part_of.items() if part == name] for name in PARTS}
    both = tuple(sorted(case for case, part in part_of.items() if part == BOTH))
    if both:
        if parts["val"] or parts["test"]:
            raise CohortError(f"fold {index} holds '{BOTH}' beside val or test; a published fold has no other part")
        return TestSelectedFold(index, tuple(sorted(parts["train"])), both, both)
    return Fold(index, *(tuple(sorted(parts[name])) for name in PARTS))
