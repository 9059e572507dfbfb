"""Published protocols: folds, scores and means are the published program's; they never mix with honest ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mhim.cohort import Cohort, SlideRow
from mhim.errors import CohortError, ConfigError
from mhim.protocols import (
    PROTOCOLS,
    protocol,
    published_mean,
    published_parts,
    published_scores,
    published_splits,
    require_one_protocol,
)
from mhim.splits import Fold, TestSelectedFold, read_splits, write_splits

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = SHARED / "golden/outputs"
TABLES = SHARED / "data/camelyon16_tcga_meta"

needs_shared = pytest.mark.skipif(not GOLDEN.is_dir() or not TABLES.is_dir(), reason="needs ../shared (golden, data)")


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def listed(name: str) -> tuple[list[str], list[str]]:
    rows = list(csv.reader((TABLES / name).read_text().splitlines()))
    return [row[0] for row in rows], [row[1] for row in rows]


def cohort_of(ids: list[str], labels: list[str]) -> Cohort:
    rows = tuple(SlideRow(name, name, label) for name, label in zip(ids, labels, strict=True))
    return Cohort("table", rows, tuple(sorted(set(labels))))


@needs_shared
def test_camelyon16_folds_are_the_published_programs_in_its_order() -> None:
    ids, labels = listed("mhim_label_c16.csv")
    found = published_parts(ids, [int(label) for label in labels], 3, 2021)
    expected = golden("cv_splits_v1.json")["c16_seed2021"]
    assert [list(parts.test) for parts in found] == [fold["test"] for fold in expected]
    assert [list(parts.val) for parts in found] == [fold["val"] for fold in expected] == [[], [], []]
    assert [len(parts.train) for parts in found] == [fold["n_train"] for fold in expected]


@needs_shared
def test_tcga_folds_and_validation_parts_are_the_published_programs_in_its_order() -> None:
    ids, labels = listed("mhim_label_tcga_nsclc.csv")
    chosen = protocol("iccv2023-tcga")
    found = published_parts(ids, [["LUAD", "LUSC"].index(label) for label in labels], 4, 2021, chosen.val_share)
    expected = golden("cv_splits_v1.json")["tcga_nsclc_seed2021"]
    assert [list(parts.test) for parts in found] == [fold["test"] for fold in expected]
    assert [list(parts.val) for parts in found] == [fold["val"] for fold in expected]
    assert [len(parts.train) for parts in found] == [fold["n_train"] for fold in expected] == [625] * 4


@needs_shared
@pytest.mark.parametrize(
    ("name", "table", "key"),
    [
        ("iccv2023-camelyon16", "mhim_label_c16.csv", "c16_seed2021"),
        ("iccv2023-tcga", "mhim_label_tcga_nsclc.csv", "tcga_nsclc_seed2021"),
    ],
)
def test_the_splits_of_a_protocol_hold_the_published_folds(name: str, table: str, key: str) -> None:
    splits = published_splits(cohort_of(*listed(table)), protocol(name), 2021)
    for fold, expected in zip(splits.folds, golden("cv_splits_v1.json")[key], strict=True):
        assert fold.test == tuple(sorted(expected["test"]))
        assert fold.val == tuple(sorted(expected["val"] or expected["test"]))
        assert isinstance(fold, TestSelectedFold) == (not expected["val"])


@needs_shared
def test_scores_are_the_published_programs() -> None:
    expected = golden("schedules_losses_metrics.json")["five_scores"]
    found = published_scores(np.array(expected["labels"]), np.array(expected["scores"]))
    for name in ("threshold", "accuracy", "auc", "precision", "recall", "f1"):
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12)


def test_the_published_threshold_is_the_best_on_the_scored_set() -> None:
    """That is why it is not honest: 4 of 4 right on noise that a threshold from elsewhere gets wrong."""
    found = published_scores(np.array([0, 0, 1, 1]), np.array([0.01, 0.02, 0.03, 0.04]))
    assert (found.threshold, found.accuracy) == (0.03, 1.0)


def test_means_over_seeds_average_folds_first() -> None:
    values = np.array([[0.9, 0.7], [0.8, 0.6]])
    assert published_mean(values, protocol("iccv2023-camelyon16")) == pytest.approx((0.75, 0.05))
    assert published_mean(values, protocol("iccv2023-tcga")) == pytest.approx((0.75, np.std(values)))


def test_the_first_tenth_of_the_epochs_is_ignored() -> None:
    assert protocol("iccv2023-tcga").first_epoch(200) == 20
    assert protocol("iccv2023-tcga").first_epoch(7) == 1
    assert protocol("iccv2023-camelyon16").first_epoch(200) == 0


def test_only_the_honest_protocol_is_honest_and_all_others_warn() -> None:
    assert [name for name, each in PROTOCOLS.items() if each.is_honest] == ["honest"]
    assert PROTOCOLS["honest"].caution is None
    assert PROTOCOLS["iccv2023-camelyon16"].caution == (
        "protocol iccv2023-camelyon16: the test part chose the epoch and threshold, as published; "
        "not comparable with honest numbers"
    )
    assert "chose the threshold, as" in (PROTOCOLS["iccv2023-tcga"].caution or "")


def test_two_protocols_do_not_share_a_table() -> None:
    assert require_one_protocol([("a", "honest"), ("b", "honest")]).name == "honest"
    with pytest.raises(CohortError, match="runs/b: protocol iccv2023-tcga, but runs/a has honest"):
        require_one_protocol([("runs/a", "honest"), ("runs/b", "iccv2023-tcga")])
    with pytest.raises(ConfigError, match="'secret' is unknown .known: honest, iccv2023-camelyon16"):
        protocol("secret")


def small() -> Cohort:
    return cohort_of([f"s{i}" for i in range(12)], ["a", "b"] * 6)


def test_a_fold_that_validates_on_its_test_part_trains_on_none_of_it() -> None:
    for fold in published_splits(small(), protocol("iccv2023-camelyon16"), 0).folds:
        assert fold.val == fold.test
        assert not set(fold.train) & set(fold.test)
    with pytest.raises(CohortError, match="case a is in more than one part"):
        TestSelectedFold(0, ("a", "b"), ("a",), ("a",))
    with pytest.raises(CohortError, match="validation and test part differ"):
        TestSelectedFold(0, ("a",), ("b",), ("c",))
    with pytest.raises(CohortError, match="a part is empty"):
        TestSelectedFold(0, (), ("c",), ("c",))
    with pytest.raises(CohortError, match="case c is in more than one part"):
        Fold(0, ("a",), ("c",), ("c",))


def test_other_folds_than_published_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 3 folds, not 4"):
        published_splits(small(), protocol("iccv2023-camelyon16"), 0, folds=4)
    with pytest.raises(ConfigError, match="does not state the number of folds"):
        published_splits(small(), protocol("ijcv2025"), 0)
    with pytest.raises(ConfigError, match="honest has no published folds"):
        published_splits(small(), protocol("honest"), 0)
    with pytest.raises(CohortError, match="2 cases of class 'b' are too few for 3 folds"):
        published_splits(cohort_of(list("vwxyz"), list("aaabb")), protocol("iccv2023-camelyon16"), 0)


def test_a_table_says_that_a_fold_validates_on_its_test_part(tmp_path: Path) -> None:
    splits = published_splits(small(), protocol("iccv2023-camelyon16"), 0)
    write_splits(tmp_path / "splits.csv", splits)
    assert set((tmp_path / "splits.csv").read_text().splitlines()[1].split(",")[1:]) <= {"train", "val+test"}
    again = read_splits(tmp_path / "splits.csv")
    assert again == splits
    assert all(fold.validates_on_test for fold in again.folds)
    (tmp_path / "mixed.csv").write_text("case_id,fold_0\na,train\nb,val+test\nc,val\n")
    with pytest.raises(CohortError, match=r"fold 0 holds 'val\+test' beside val or test"):
        read_splits(tmp_path / "mixed.csv")
