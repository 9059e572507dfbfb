"""Published evaluation protocols by name, and the honest one; runs of different protocols never share a table.

The published programs choose the epoch on the test fold (CAMELYON16), ignore early epochs (TCGA), and choose the
threshold on the very set that is scored. Here that is something one has to ask for by name; the name stands in the
run's configuration, in ``run.json`` and in every table.

Source: Tang et al., ICCV 2023 (MHIM v1), and IJCV 2025 (v2), with the programs of both; sections 5 and 6 of the notes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold

from mhim.cohort import Cohort
from mhim.errors import CohortError, ConfigError
from mhim.splits import Fold, Splits, TestSelectedFold

HONEST = "honest"


@dataclass(frozen=True)
class Protocol:
    """How cases are split, and what chooses epoch and threshold.

    Attributes:
        name: as in ``--protocol`` and in the run's configuration.
        source: where it is from, or what it is.
        folds: number of folds; None leaves it open.
        seeds: published repetitions, each with its own folds.
        val_share: share of a fold's other cases, per class and rounded down, that validates; 0 for none.
        epoch_by: part that chooses the epoch and stops training.
        threshold_by: part that chooses the threshold.
        ignored_epochs: share of the schedule whose epochs are never chosen.
        spread: what the published standard deviation (population) is taken over.
        task: what it is for.
    """

    name: str
    source: str
    folds: int | None
    seeds: tuple[int, ...]
    val_share: float
    epoch_by: Literal["val", "test"]
    threshold_by: Literal["val", "test"]
    ignored_epochs: float
    spread: Literal["seeds", "folds"]
    task: Literal["classification", "survival"] = "classification"

    @property
    def is_honest(self) -> bool:
        """Whether the test part chooses nothing."""
        return self.epoch_by == self.threshold_by == "val"

    @property
    def caution(self) -> str | None:
        """What a reader of its numbers has to know; None for the honest protocol."""
        if self.is_honest:
            return None
        chosen = {"epoch": self.epoch_by, "threshold": self.threshold_by}
        chose = " and ".join(what for what, part in chosen.items() if part == "test")
        return (
            f"protocol {self.name}: the test part chose the {chose}, as published; not comparable with honest numbers"
        )

    def chosen_by(self, honest: Mapping[str, str]) -> dict[str, str]:
        """What chose what under this protocol, from what would choose under the honest one."""
        if self.is_honest:
            return dict(honest)
        parts = {"epoch": self.epoch_by, "threshold": self.threshold_by}
        said = {what: honest[what].replace("validation", "TEST") for what, part in parts.items() if part == "test"}
        return dict(honest) | said | {"test part": f"chose as said above, protocol {self.name}"}

    def first_epoch(self, epochs: int) -> int:
        """First epoch (from 0) that may be chosen in a schedule of ``epochs``."""
        return math.ceil(self.ignored_epochs * epochs - 1e-9)


PROTOCOLS: dict[str, Protocol] = {
    each.name: each
    for each in (
        Protocol(
            HONEST,
            "epoch, threshold and temperature are chosen on an inner validation part, the test part is scored once",
            *(None, (0,), 0.2, "val", "val", 0.0, "folds"),
        ),
        Protocol(
            "iccv2023-camelyon16",
            "MHIM v1 on CAMELYON16: 398 slides pooled, 3 folds, no validation part",
            *(3, (2021, 2022, 2023), 0.0, "test", "test", 0.0, "seeds"),
        ),
        Protocol(
            "iccv2023-tcga",
            "MHIM v1 on TCGA-NSCLC: 956 patients, 4 folds, 13 % of the training part validates",
            *(4, (2021,), 0.13, "val", "test", 0.1, "folds"),
        ),
        Protocol(
            "ijcv2025",
            "MHIM v2, classification: the shipped default has no validation part; the number of folds is not stated",
            *(None, (2021,), 0.0, "test", "test", 0.0, "folds"),
        ),
        Protocol(
            "ijcv2025-survival",
            "MHIM v2, survival: 5 folds, the shipped default has no validation part",
            *(5, (2021,), 0.0, "test", "test", 0.0, "folds", "survival"),
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ConfigError: no such protocol; lists the known ones.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol '{name}' is unknown (known: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def require_one_protocol(named: Iterable[tuple[object, str]]) -> Protocol:
    """The protocol that all runs share.

    Args:
        named: (what to call it in an error, name of its protocol) of each run.

    Raises:
        CohortError: two protocols, which never stand in one table.
        ConfigError: an unknown protocol.
    """
    first: tuple[object, str] | None = None
    for what, name in named:
        first = first or (what, name)
        if name != first[1]:
            raise CohortError(
                f"{what}: protocol {name}, but {first[0]} has {first[1]}; numbers of different "
                f"protocols do not compare, make one table for each"
            )
    if first is None:
        raise ConfigError("no run was given")
    return protocol(first[1])


@dataclass(frozen=True)
class Parts:
    """Ids of one published fold, in the published order."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def require_folds_of(chosen: Protocol, splits: Splits, source: object) -> None:
    """Refuse folds that another protocol made: above all test parts that validate, outside of the protocols for it.

    Raises:
        CohortError: names the file and the fix.
    """
    for fold in splits.folds:
        if fold.validates_on_test and chosen.epoch_by == "val":
            raise CohortError(
                f"{source}: fold {fold.index} validates on its test part, which protocol {chosen.name} does not; split "
                f"again, or name the published protocol with --protocol"
            )
        if not fold.validates_on_test and chosen.epoch_by == "test":
            raise CohortError(
                f"{source}: fold {fold.index} has a validation part, but protocol {chosen.name} chooses on the test "
                f"part; make its folds with 'mhim split --protocol {chosen.name}'"
            )


def published_parts(
    ids: Sequence[str], labels: Sequence[int], folds: int, seed: int, val_share: float = 0.0
) -> list[Parts]:
    """Folds as the program of MHIM v1 draws them.

    The list is shuffled by Python's generator with the seed, then cut by scikit-learn's stratified folds without
    shuffling. With a validation share each fold's other ids of a class, class by class, are shuffled by the same
    generator, and the first ``floor(share * count)`` validate. The folds depend on the order of the list.

    Args:
        ids: cases in table order.
        labels: class index of each.
        folds: number of folds.
        seed: of the shuffling.
        val_share: share of a fold's non-test ids that validates, per class.
    """
    generator = random.Random(seed)
    order = list(range(len(ids)))
    generator.shuffle(order)
    names, classes = [ids[i] for i in order], np.array([labels[i] for i in order])
    drawn = []
    for train, test in StratifiedKFold(folds).split(np.zeros(len(names)), classes):
        val: list[int] = []
        for label in np.unique(classes) if val_share > 0 else ():
            members = train[classes[train] == label].tolist()
            generator.shuffle(members)
            val += members[: int(len(members) * val_share)]
        taken = set(val)
        parts = ([i for i in train.tolist() if i not in taken], val, test.tolist())
        drawn.append(Parts(*(tuple(names[i] for i in part) for part in parts)))
    return drawn


def published_splits(cohort: Cohort, chosen: Protocol, seed: int, folds: int | None = None) -> Splits:
    """The folds of a published protocol on a cohort, by case in table order.

    Raises:
        ConfigError: the honest protocol (it has ``make_splits``), or no or another number of folds.
        CohortError: a class with fewer cases than folds, or missing from a training part.
    """
    if chosen.is_honest:
        raise ConfigError(f"protocol {chosen.name} has no published folds; leave --protocol out")
    if chosen.folds is not None and folds not in (None, chosen.folds):
        raise ConfigError(f"protocol {chosen.name} has {chosen.folds} folds, not {folds}; leave --folds out")
    count = chosen.folds or folds
    if count is None:
        raise ConfigError(f"protocol {chosen.name} does not state the number of folds; give --folds")
    labels = cohort.case_labels()
    counts = np.bincount(list(labels.values()), minlength=len(cohort.classes))
    if counts.min() < count:
        name = cohort.classes[int(counts.argmin())]
        raise CohortError(f"{cohort.source}: {counts.min()} cases of class '{name}' are too few for {count} folds")
    drawn = published_parts(list(labels), list(labels.values()), count, seed, chosen.val_share)
    made: list[Fold] = []
    for index, parts in enumerate(drawn):
        train, val, test = (tuple(sorted(part)) for part in (parts.train, parts.val, parts.test))
        made.append(Fold(index, train, val, test) if val else TestSelectedFold(index, train, test, test))
    splits = Splits(tuple(made))
    splits.check(cohort, cohort.source)
    return splits


@dataclass(frozen=True)
class PublishedScores:
    """The scores of a published table; all but ``auc`` at the threshold that suits the scored set best."""

    threshold: float
    accuracy: float
    auc: float
    precision: float
    recall: float
    f1: float


def published_scores(y_true: NDArray[np.int64], probability: NDArray[np.float64]) -> PublishedScores:
    """Scores of two classes as published: the threshold maximises TPR - FPR on the set that is scored.

    Positive at p >= threshold, the first maximiser along the ROC curve (highest threshold).

    Args:
        y_true: (M,) 0 or 1, both present.
        probability: (M,) of class 1.
    """
    fpr, tpr, thresholds = roc_curve(y_true, probability)
    threshold = float(thresholds[int(np.argmax(tpr - fpr))])
    said = (probability >= threshold).astype(np.int64)
    return PublishedScores(
        threshold=threshold,
        accuracy=float(accuracy_score(y_true, said)),
        auc=float(roc_auc_score(y_true, probability)),
        precision=float(precision_score(y_true, said, zero_division=0.0)),  # pyright: ignore[reportArgumentType]
        recall=float(recall_score(y_true, said)),
        f1=float(f1_score(y_true, said)),
    )


def published_mean(values: NDArray[np.float64], chosen: Protocol) -> tuple[float, float]:
    """(mean, population standard deviation) of a published table.

    Args:
        values: (seeds, folds) of one score.
        chosen: over seeds, the folds of a seed are averaged first; over folds, all values count alike.
    """
    over = values.mean(axis=1) if chosen.spread == "seeds" else values.ravel()
    return float(over.mean()), float(over.std())
