"""Split files of other programs, and folds that respect sites."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mhim.cohort import Cohort, SlideRow
from mhim.errors import CohortError
from mhim.split_files import read_foreign_splits
from mhim.splits import SplitConfig, make_splits, read_splits, write_splits

TRANSMIL = Path(__file__).parents[2] / "shared/data/camelyon16_tcga_meta/transmil_camelyon16_fold0.csv"
CONFIG = SplitConfig.model_validate({"val_fraction": 0.25})


def cohort(n: int = 12, sites: list[str] | None = None, slides: int = 2) -> Cohort:
    rows = [
        SlideRow(f"s{case}_{k}", f"c{case}", "ab"[case % 2], site=None if sites is None else sites[case])
        for case in range(n)
        for k in range(slides)
    ]
    return Cohort("cohort.csv", tuple(rows), ("a", "b"))


def slides(cases: range) -> list[str]:
    return [f"s{case}_{k}" for case in cases for k in range(2)]


def names(cases: range) -> tuple[str, ...]:
    return tuple(sorted(f"c{case}" for case in cases))


def clam(path: Path, train: list[str], val: list[str], test: list[str]) -> None:
    lines = [",train,val,test"]
    for i in range(max(len(train), len(val), len(test))):
        lines.append(",".join([str(i), *(part[i] if i < len(part) else "" for part in (train, val, test))]))
    path.write_text("\n".join(lines) + "\n")


def test_clams_folder_is_read_by_number_and_slides_become_cases(tmp_path: Path) -> None:
    clam(tmp_path / "splits_0.csv", slides(range(0, 6)), slides(range(6, 9)), slides(range(9, 12)))
    clam(tmp_path / "splits_1.csv", slides(range(6, 12)), slides(range(3, 6)), slides(range(0, 3)))
    (tmp_path / "splits_0_bool.csv").write_text("x")
    (tmp_path / "splits_0_descriptor.csv").write_text("x")
    found = read_foreign_splits(tmp_path, cohort(), CONFIG)
    assert (found.layout, found.drew_validation, found.splits.repeated) == ("CLAM", False, False)
    assert found.splits.folds[0].train == names(range(0, 6))
    assert found.splits.folds[1].test == names(range(0, 3))


def test_repeated_random_splits_keep_their_overlap_and_say_so(tmp_path: Path) -> None:
    for index in range(2):
        clam(tmp_path / f"splits_{index}.csv", slides(range(0, 6)), slides(range(6, 9)), slides(range(9, 12)))
    found = read_foreign_splits(tmp_path, cohort(), CONFIG).splits
    assert found.repeated
    write_splits(tmp_path / "splits.csv", found)
    assert (tmp_path / "splits.csv").read_text().startswith("case_id,repeat_0,repeat_1\n")
    assert read_splits(tmp_path / "splits.csv") == found


def test_stamp_has_no_validation_part_so_one_is_drawn(tmp_path: Path) -> None:
    folds = [
        {"train_patients": list(names(range(0, 8))), "test_patients": list(names(range(8, 12)))},
        {"train_patients": list(names(range(4, 12))), "test_patients": list(names(range(0, 4)))},
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": folds}))
    found = read_foreign_splits(tmp_path / "splits.json", cohort(), CONFIG)
    assert (found.layout, found.drew_validation) == ("STAMP", True)
    for fold, given in zip(found.splits.folds, folds, strict=True):
        assert fold.test == tuple(sorted(given["test_patients"]))
        assert sorted((*fold.train, *fold.val)) == sorted(given["train_patients"])
        assert Counter(int(case[1:]) % 2 for case in fold.val) == {0: 1, 1: 1}


def test_patho_bench_and_single_tables(tmp_path: Path) -> None:
    part = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    rows = [f"c{case}\ts{case}_{k}\tx\t{part[case]}" for case in range(12) for k in range(2)]
    (tmp_path / "k=all.tsv").write_text("case_id\tslide_id\tlabel\tfold_0\n" + "\n".join(rows) + "\n")
    bench = read_foreign_splits(tmp_path / "k=all.tsv", cohort(), CONFIG)
    rows = [
        f"path/to/s{case}_{k}.svs,{'tune' if part[case] == 'val' else part[case]}"
        for case in range(12)
        for k in range(2)
    ]
    (tmp_path / "parts.csv").write_text("slide_id,split\n" + "\n".join(rows) + "\n")
    table = read_foreign_splits(tmp_path / "parts.csv", cohort(), CONFIG)
    rows = [f"c{case},s{case}_{k},1,{part[case]}" for case in range(12) for k in range(2)]
    (tmp_path / "mhim.csv").write_text("\n".join(rows) + "\n")
    bare = read_foreign_splits(tmp_path / "mhim.csv", cohort(), CONFIG)
    assert [each.layout for each in (bench, table, bare)] == ["Patho-Bench", "table of parts", "MHIM"]
    assert bench.splits == table.splits == bare.splits


def test_a_case_in_two_parts_is_refused_whatever_its_slides_are_called(tmp_path: Path) -> None:
    clam(
        tmp_path / "splits_0.csv", [*slides(range(0, 6)), "s9_0"], slides(range(6, 9)), ["s9_1", *slides(range(10, 12))]
    )
    with pytest.raises(CohortError, match="fold 0: case c9 is in more than one part"):
        read_foreign_splits(tmp_path, cohort(), CONFIG)
    stamp = {"splits": [{"train_patients": list(names(range(0, 10))), "test_patients": list(names(range(9, 12)))}]}
    (tmp_path / "splits.json").write_text(json.dumps(stamp))
    with pytest.raises(CohortError, match="case c9 is in more than one part"):
        read_foreign_splits(tmp_path / "splits.json", cohort(), CONFIG)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.csv", "slide_id,split\ns99,train\n", "s99 is neither a case nor a slide of cohort.csv"),
        ("a.csv", "slide_id,split\ns1_0,holdout\n", "s1_0 has part 'holdout'"),
        ("a.csv", "x,y\n1,2\n", "no layout of splits is known with the columns x, y"),
        ("a.csv", "", "the table is empty"),
        ("a.json", "[]", "not a STAMP file"),
        ("none.csv", None, "the splits cannot be read"),
    ],
)
def test_what_is_no_split_is_named(name: str, text: str | None, fault: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CohortError, match=fault):
        read_foreign_splits(tmp_path / name, cohort(), CONFIG)


@pytest.mark.skipif(not TRANSMIL.is_file(), reason="needs ../shared/data")
def test_transmils_real_split_is_read() -> None:
    body = [line.split(",") for line in TRANSMIL.read_text().splitlines()[1:]]
    labels = {row[i]: row[i + 1] for row in body for i in (1, 3, 5) if row[i]}
    rows = tuple(SlideRow(name, name, str(int(float(label)))) for name, label in labels.items())
    found = read_foreign_splits(TRANSMIL, Cohort("c16", rows, ("0", "1")), CONFIG).splits.folds[0]
    assert [len(found.part(part)) for part in ("train", "val", "test")] == [
        sum(bool(row[i]) for row in body) for i in (1, 3, 5)
    ]


SITES = [f"site{(case // 2) % 4}" for case in range(24)]


def config(site: str, folds: int = 3) -> SplitConfig:
    return SplitConfig.model_validate({"site": site, "folds": folds})


def test_each_site_is_tested_alone() -> None:
    splits = make_splits(cohort(24, SITES), config("leave-one-out"))
    assert [{SITES[int(case[1:])] for case in fold.test} for fold in splits.folds] == [{f"site{k}"} for k in range(4)]


def test_a_preserved_site_is_in_one_test_part_only() -> None:
    splits = make_splits(cohort(24, SITES), config("preserve"))
    tested = [{SITES[int(case[1:])] for case in fold.test} for fold in splits.folds]
    assert sum(map(len, tested)) == 4
    assert set.union(*tested) == set(SITES)


def test_stratified_folds_have_their_share_of_every_class_and_site() -> None:
    splits = make_splits(cohort(24, SITES), config("stratify"))
    for fold in splits.folds:
        assert sorted(Counter(int(case[1:]) % 2 for case in fold.test).values()) == [4, 4]
        assert set(Counter(SITES[int(case[1:])] for case in fold.test).values()) == {2}
    other = make_splits(cohort(24, SITES), SplitConfig.model_validate({"site": "stratify", "folds": 3, "seed": 1}))
    assert other != splits
    assert sorted(case for fold in splits.folds for case in fold.test) == sorted(f"c{i}" for i in range(24))


@pytest.mark.parametrize("mode", ["stratify", "preserve", "leave-one-out"])
def test_sites_have_to_be_known(mode: str) -> None:
    with pytest.raises(CohortError, match="slide s0_0 has no site"):
        make_splits(cohort(), config(mode))
    with pytest.raises(CohortError, match="all cases are of one site"):
        make_splits(cohort(12, ["x"] * 12), config(mode))


def test_a_site_owns_whole_cases_and_fills_its_folds() -> None:
    rows = (SlideRow("a", "c", "x", site="1"), SlideRow("b", "c", "x", site="2"))
    with pytest.raises(CohortError, match="case c has slides of two sites"):
        make_splits(Cohort("t", rows, ("x",)), config("preserve"))
    with pytest.raises(CohortError, match="4 sites cannot fill 5 folds"):
        make_splits(cohort(24, SITES), config("preserve", 5))


def test_a_class_of_one_site_is_missing_from_training_when_that_site_is_left_out() -> None:
    sites = ["x" if case % 2 else "y" for case in range(12)]
    with pytest.raises(CohortError, match="has no case of class"):
        make_splits(cohort(12, sites), config("leave-one-out"))


def test_drawn_validation_is_reproducible() -> None:
    first, again = (make_splits(cohort(24, SITES), config("preserve")) for _ in range(2))
    assert first == again
    assert np.mean([len(fold.val) for fold in first.folds]) > 0
