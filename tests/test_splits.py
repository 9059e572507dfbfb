"""Splits of cases: laws that hold for every cohort, seed and number of folds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.cohort import Cohort, SlideRow
from mhim.errors import CohortError
from mhim.splits import PARTS, Fold, SplitConfig, Splits, make_splits, read_splits, write_splits

LAW = settings(deadline=None, max_examples=60)


def cohort_of(slides_of_case: list[tuple[int, int]], folds: list[int] | None = None) -> Cohort:
    """Cases from (class, number of slides)."""
    rows = [
        SlideRow(f"s{case}_{slide}", f"c{case:03d}", f"k{label}", fold=None if folds is None else folds[case])
        for case, (label, slides) in enumerate(slides_of_case)
        for slide in range(slides)
    ]
    classes = tuple(sorted({str(row.label) for row in rows}))
    return Cohort("cohort.csv", tuple(rows), classes)


def config(folds: int = 5, val_fraction: float = 0.2, seed: int = 0, use_fold_column: bool = False) -> SplitConfig:
    return SplitConfig(folds=folds, val_fraction=val_fraction, seed=seed, use_fold_column=use_fold_column)


@st.composite
def splittable(draw: st.DrawFn) -> tuple[Cohort, SplitConfig]:
    """A cohort that is large enough for its folds, and a configuration."""
    folds = draw(st.integers(2, 6))
    fewest = max(folds, 4)
    sizes = draw(st.lists(st.integers(fewest, 4 * folds), min_size=2, max_size=4))
    labels = draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)]))
    slides = draw(st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels)))
    fraction = draw(st.sampled_from([0.05, 0.2, 0.5, 0.9]))
    cohort = cohort_of(list(zip(labels, slides, strict=True)))
    return cohort, config(folds, fraction, draw(st.integers(0, 2**32 - 1)))


@LAW
@given(splittable())
def test_no_case_is_in_two_parts_and_every_case_is_tested_once(drawn: tuple[Cohort, SplitConfig]) -> None:
    cohort, chosen = drawn
    splits = make_splits(cohort, chosen)
    cases = set(cohort.case_labels())
    assert Counter(case for fold in splits.folds for case in fold.test) == dict.fromkeys(cases, 1)
    for fold in splits.folds:
        parts = [set(fold.part(part)) for part in PARTS]
        assert set.union(*parts) == cases
        assert sum(map(len, parts)) == len(cases)
    assert len(splits.folds) == chosen.folds


@LAW
@given(splittable())
def test_the_slides_of_a_case_are_never_separated(drawn: tuple[Cohort, SplitConfig]) -> None:
    cohort, chosen = drawn
    for fold in make_splits(cohort, chosen).folds:
        part_of = {row.slide_id: part for part in PARTS for row in cohort.of_cases(fold.part(part))}
        assert len(part_of) == len(cohort)
        for case in cohort.case_labels():
            assert len({part_of[row.slide_id] for row in cohort.of_cases([case])}) == 1


@LAW
@given(splittable())
def test_class_shares_are_equal_within_one_case(drawn: tuple[Cohort, SplitConfig]) -> None:
    cohort, chosen = drawn
    labels = cohort.case_labels()
    sizes = Counter(labels.values())
    for fold in make_splits(cohort, chosen).folds:
        tested, validated = (Counter(labels[case] for case in part) for part in (fold.test, fold.val))
        for label, size in sizes.items():
            assert math.floor(size / chosen.folds) <= tested[label] <= math.ceil(size / chosen.folds)
            rest = size - tested[label]
            assert abs(validated[label] - min(max(chosen.val_fraction * rest, 1), rest - 1)) <= 1


@LAW
@given(splittable())
def test_every_class_is_in_training_validation_and_test_of_every_fold(drawn: tuple[Cohort, SplitConfig]) -> None:
    cohort, chosen = drawn
    labels = cohort.case_labels()
    for fold in make_splits(cohort, chosen).folds:
        for part in PARTS:
            assert {labels[case] for case in fold.part(part)} == set(range(len(cohort.classes)))


@LAW
@given(splittable())
def test_the_same_seed_gives_the_same_splits_whatever_the_slides(drawn: tuple[Cohort, SplitConfig]) -> None:
    cohort, chosen = drawn
    one_each = Cohort(cohort.source, tuple({row.case_id: row for row in cohort}.values()), cohort.classes)
    assert make_splits(cohort, chosen) == make_splits(cohort, chosen) == make_splits(one_each, chosen)


def test_another_seed_gives_other_splits() -> None:
    cohort = cohort_of([(case % 2, 1) for case in range(40)])
    assert len({make_splits(cohort, config(seed=seed)) for seed in range(5)}) == 5


def test_validation_parts_of_the_folds_are_drawn_independently() -> None:
    cohort = cohort_of([(case % 2, 1) for case in range(40)])
    splits = make_splits(cohort, config())
    assert len({fold.val for fold in splits.folds}) == 5


@LAW
@given(drawn=splittable())
def test_a_written_table_reads_back_equal(
    drawn: tuple[Cohort, SplitConfig], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("splits") / "splits.csv"
    splits = make_splits(*drawn)
    write_splits(path, splits)
    assert read_splits(path) == splits


@pytest.mark.parametrize("case", ["NA", "001", "None", "a,b", 'a"b', "1e3", "é"])
def test_case_names_survive_the_table(case: str, tmp_path: Path) -> None:
    splits = Splits((Fold(0, (case,), ("v",), ("t",)), Fold(1, ("t",), ("v",), (case,))))
    write_splits(tmp_path / "splits.csv", splits)
    assert read_splits(tmp_path / "splits.csv") == splits


def test_cases_that_a_fold_leaves_out_stay_out(tmp_path: Path) -> None:
    splits = Splits((Fold(0, ("a",), ("b",), ("c",)), Fold(1, ("b",), ("c",), ("d",))))
    write_splits(tmp_path / "splits.csv", splits)
    assert (tmp_path / "splits.csv").read_text().splitlines()[1] == "a,train,"
    assert read_splits(tmp_path / "splits.csv") == splits


def test_equal_splits_are_equal_bytes(tmp_path: Path) -> None:
    cohort = cohort_of([(case % 2, 1) for case in range(20)])
    for name in ("a", "b"):
        write_splits(tmp_path / name, make_splits(cohort, config()))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("size", "folds"), [(3, 5), (4, 5), (2, 2), (3, 2), (1, 2)])
def test_too_few_cases_of_a_class_are_one_line_with_the_fix(size: int, folds: int) -> None:
    cohort = cohort_of([(0, 1)] * 30 + [(1, 1)] * size)
    with pytest.raises(CohortError) as caught:
        make_splits(cohort, config(folds))
    assert str(caught.value) == (
        f"cohort.csv: {size} cases of class 'k1' are too few for {folds} folds with train, val and test parts; "
        f"use fewer --folds or add cases"
    )


def test_the_smallest_class_that_fits_is_split() -> None:
    """Two folds of four cases: two are tested, one trains, one validates."""
    cohort = cohort_of([(0, 1)] * 30 + [(1, 1)] * 4)
    labels = cohort.case_labels()
    for fold in make_splits(cohort, config(2, 0.05)).folds:
        assert [sum(labels[case] for case in fold.part(part)) for part in PARTS] == [1, 1, 2]


def test_given_test_folds_are_kept() -> None:
    given_folds = [case // 2 % 3 * 2 for case in range(24)]
    cohort = cohort_of([(case % 2, 2) for case in range(24)], given_folds)
    splits = make_splits(cohort, config(use_fold_column=True))
    for index, number in enumerate((0, 2, 4)):
        expected = tuple(f"c{case:03d}" for case in range(24) if given_folds[case] == number)
        assert splits.folds[index].test == expected


def test_a_given_fold_that_holds_all_of_a_class_is_refused() -> None:
    cohort = cohort_of([(case // 12, 1) for case in range(24)], [case // 12 for case in range(24)])
    with pytest.raises(CohortError, match=r"cohort\.csv: fold 0 has no case of class 'k0' in training"):
        make_splits(cohort, config(use_fold_column=True))


def test_faults_of_the_fold_column_are_named() -> None:
    rows = (SlideRow("a", "1", "x", fold=0), SlideRow("b", "1", "x", fold=1), SlideRow("c", "2", "y", fold=0))
    chosen = config(use_fold_column=True)
    with pytest.raises(CohortError, match="slides of case 1 are in different folds"):
        make_splits(Cohort("cohort.csv", rows, ("x", "y")), chosen)
    with pytest.raises(CohortError, match="names a single fold"):
        make_splits(Cohort("cohort.csv", (rows[0], rows[2]), ("x", "y")), chosen)
    with pytest.raises(CohortError, match="slide d has no value in the column 'fold'"):
        make_splits(Cohort("cohort.csv", (SlideRow("d", "3", "y"), *rows), ("x", "y")), chosen)
    with pytest.raises(CohortError, match=r"cohort\.csv: fold 0: the val part is empty"):
        make_splits(Cohort("cohort.csv", rows[1:], ("x", "y")), chosen)


TABLES = {
    "leak between folds": (
        "case_id,fold_0,fold_1\na,test,test\nb,train,val\nc,val,train\n",
        "case a is in the test part of more",
    ),
    "case twice": ("case_id,fold_0\na,test\na,train\nb,train\nc,val\n", "case a appears more than once"),
    "unknown part": ("case_id,fold_0\na,test\nb,train\nc,valid\n", "case c has part 'valid' in fold 0"),
    "empty validation": ("case_id,fold_0\na,test\nb,train\nc,\n", "fold 0: the val part is empty"),
    "no folds": ("case_id,part\na,test\n", "expected columns case_id, fold_0, fold_1"),
    "no cases": ("slide_id,fold_0\na,test\n", "expected columns case_id"),
    "short row": ("case_id,fold_0,fold_1\na,test\n", "line 2: 2 cells"),
    "empty": ("", "expected columns case_id"),
}


@pytest.mark.parametrize(("text", "fault"), TABLES.values(), ids=TABLES)
def test_a_faulty_table_is_one_line_with_file_and_fault(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(CohortError) as caught:
        read_splits(tmp_path / "splits.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'splits.csv'}")
    assert fault in str(caught.value)


def test_a_missing_table_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"none\.csv: no such table; make it with 'mhim split'"):
        read_splits(tmp_path / "none.csv")


def test_folds_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Column fold_10 comes after fold_2, and a spreadsheet may have moved the columns."""
    columns = [f"fold_{index}" for index in (10, 2, 0)]
    (tmp_path / "s.csv").write_text(
        f"case_id,{','.join(columns)}\na,test,val,train\nb,val,train,test\nc,train,test,val\n"
    )
    assert [fold.test for fold in read_splits(tmp_path / "s.csv").folds] == [("b",), ("c",), ("a",)]


def test_a_case_in_two_parts_cannot_be_built() -> None:
    with pytest.raises(CohortError, match="case a is in more than one part"):
        Fold(0, ("a", "b"), ("a",), ("c",))


def test_splits_of_another_cohort_are_refused() -> None:
    cohort = cohort_of([(case % 2, 1) for case in range(20)])
    splits = make_splits(cohort, config())
    fewer = Cohort("other.csv", cohort.rows[1:], cohort.classes)
    with pytest.raises(CohortError, match=r"splits\.csv: case c000 is not in other\.csv; split this cohort again"):
        splits.check(fewer, "splits.csv")
    more = Cohort("other.csv", (*cohort.rows, SlideRow("new", "new", "k0")), cohort.classes)
    with pytest.raises(CohortError, match=r"splits\.csv: case new of other\.csv is in no fold"):
        splits.check(more, "splits.csv")


def test_splits_without_some_cases_keep_the_others_where_they_were() -> None:
    cohort = cohort_of([(case % 2, 1) for case in range(20)])
    splits = make_splits(cohort, config())
    gone = {splits.folds[0].test[0], splits.folds[0].train[0]}
    fewer = splits.only(cohort.case_labels().keys() - gone)
    for old, new in zip(splits.folds, fewer.folds, strict=True):
        for part in PARTS:
            assert set(new.part(part)) == set(old.part(part)) - gone


def test_splits_that_lose_a_whole_part_are_refused() -> None:
    splits = Splits((Fold(0, ("a", "b"), ("c",), ("d",)),))
    with pytest.raises(CohortError, match="fold 0: the val part is empty"):
        splits.only(["a", "b", "d"])
