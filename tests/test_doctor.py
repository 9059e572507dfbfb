"""mhim doctor: every fault is found, said and counted; a sound cohort has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mhim.bag import Bag, save_bag
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.doctor import Finding, diagnose, shortcut_auroc
from small_runs import split_cohort


def found(folder: Path, splits: bool = False) -> dict[str, Finding]:
    given = folder / "splits.csv" if splits else None
    return {each.check: each for each in diagnose(folder / "cohort.csv", folder / "features", given)}


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_a_sound_cohort_has_nothing_worse_than_notes(cohort_folder: Path) -> None:
    split_cohort(cohort_folder)
    assert {each.severity for each in found(cohort_folder, splits=True).values()} <= {"note"}


def test_faults_of_the_table(cohort_folder: Path) -> None:
    lines = (cohort_folder / "cohort.csv").read_text().splitlines()
    lines += [lines[1], "s90_0,C-00,tumour", "s91_0,c91,Tumour ", "s92_0,c92,rare", "s93_0,,normal"]
    (cohort_folder / "cohort.csv").write_text("\n".join(lines))
    findings = found(cohort_folder)
    assert findings["duplicates"].slides == ("s00_0",)
    assert findings["case_spelling"].slides == ("C-00", "c00")
    assert "'Tumour' and 'tumour'" in findings["label_spelling"].sentence
    assert "4 of 28 slides have no bag" in findings["missing_bags"].sentence
    assert "1 row has nothing in the column case_id" in findings["empty"].sentence
    every = diagnose(cohort_folder / "cohort.csv", cohort_folder / "features")
    tiny = [each for each in every if each.check == "tiny_class"]
    assert [each.sentence.split("'")[1] for each in tiny] == ["Tumour", "rare"]
    assert [each.severity for each in every] == sorted(
        (each.severity for each in every), key=["fatal", "warning", "note"].index
    )


def test_faults_of_the_bags(cohort_folder: Path) -> None:
    folder = cohort_folder / "features"
    for name, key, value in (("s00_0", "encoder", "other"), ("s01_0", "mpp", 0.25)):
        with h5py.File(folder / f"{name}.h5", "a") as file:
            file.attrs[key] = value
    with h5py.File(folder / "s02_0.h5", "a") as file:
        dataset = file["features"]
        assert isinstance(dataset, h5py.Dataset)
        dataset[0, 0] = np.nan
    with h5py.File(folder / "s03_0.h5", "a") as file:
        for key in list(file):
            del file[key]
        file["features"] = np.zeros((0, 6), dtype=np.float16)
    (folder / "s04_0.h5").write_bytes(b"nothing")
    save_bag(folder / "s05_0.h5", Bag("s05_0", np.zeros((30, 7), dtype=np.float32), None, {"encoder": "test"}))
    (folder / "s99_0.h5").write_bytes((folder / "s06_0.h5").read_bytes())
    findings = diagnose(cohort_folder / "cohort.csv", folder)
    by_check: dict[str, list[Finding]] = {}
    for each in findings:
        by_check.setdefault(each.check, []).append(each)
    assert by_check["mixed_encoder"][0].slides == ("s00_0",)
    assert by_check["mixed_mpp"][0].slides == ("s01_0",)
    assert by_check["mixed_feature_width"][0].slides == ("s05_0",)
    assert by_check["unknown_mpp"][0].slides == ("s05_0",)
    assert [each.slides for each in by_check["bad_bag"]] == [("s02_0",), ("s03_0",), ("s04_0",)]
    assert "NaN" in by_check["bad_bag"][0].sentence
    assert "zero instances" in by_check["bad_bag"][1].sentence
    assert by_check["extra_bags"][0].slides == ("s99_0",)


def test_leaks_in_splits(cohort_folder: Path) -> None:
    split_cohort(cohort_folder)
    path = cohort_folder / "splits.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    leaked = next(row for row in rows[1:] if row[1] == "test")
    rows.append([leaked[0], "train", ""])
    again = next(row for row in rows[1:-1] if row[1] == "test" and row is not leaked)
    again[2] = "test"
    rows.append(["c77", "train", "typo"])
    path.write_text("\n".join(",".join(row) for row in rows))
    findings = found(cohort_folder, splits=True)
    assert findings["case_leak"].slides == (leaked[0],)
    assert findings["tested_twice"].slides == (again[0],)
    assert findings["split_cases"].slides == ("c77",)
    assert "typo" in findings["unknown_part"].sentence
    assert {findings[name].severity for name in ("case_leak", "tested_twice")} == {"fatal"}


def test_a_class_that_is_not_trained_and_an_empty_part(cohort_folder: Path) -> None:
    cases = [f"c{case:02d}" for case in range(24)]
    part = {case: "train" if case in cases[::2] else "test" for case in cases}
    text = "\n".join(["case_id,fold_0", *(f"{case},{where}" for case, where in part.items())])
    (cohort_folder / "splits.csv").write_text(text)
    findings = found(cohort_folder, splits=True)
    assert "class 'tumour'" in findings["class_not_trained"].sentence
    assert "no val part" in findings["empty_part"].sentence


def test_published_folds_warn_once_and_repeats_may_overlap(cohort_folder: Path) -> None:
    cases = [f"c{case:02d}" for case in range(24)]
    published = {case: ["train", "val+test"] if i % 4 < 2 else ["val+test", "train"] for i, case in enumerate(cases)}
    repeated = {case: [("train", "train", "val", "test")[i // 2 % 4]] * 2 for i, case in enumerate(cases)}
    for columns, parts, expected in (("fold_0,fold_1", published, 1), ("repeat_0,repeat_1", repeated, 0)):
        lines = [f"case_id,{columns}", *(",".join([case, *part]) for case, part in parts.items())]
        (cohort_folder / "splits.csv").write_text("\n".join(lines))
        findings = found(cohort_folder, splits=True)
        assert {each.severity for each in findings.values()} <= {"warning", "note"}
        assert sum(each.check == "validates_on_test" for each in findings.values()) == expected


def test_a_balanced_site_is_no_shortcut_though_it_falls_below_chance(cohort_folder: Path) -> None:
    """What is held out of a balanced site tips the rest the other way: an AUROC far below 0.5, and nothing learned."""
    lines = (cohort_folder / "cohort.csv").read_text().splitlines()
    rows = [f"{line},{'ABCD'[index // 2 % 4]}" for index, line in enumerate(lines[1:])]
    (cohort_folder / "cohort.csv").write_text("\n".join([f"{lines[0]},site", *rows]))
    finding = found(cohort_folder)["site_shortcut"]
    assert finding.numbers is not None
    assert finding.numbers["high"] < 0.5
    assert finding.severity == "note"
    assert "below chance" in finding.sentence


def test_a_label_typed_in_two_ways_hides_no_shortcut(cohort_folder: Path) -> None:
    for path in sorted((cohort_folder / "features").glob("s*[13579]_0.h5")):
        save_bag(path, Bag(path.stem, np.ones((300, 6), dtype=np.float32), None, {"encoder": "test", "mpp": 0.5}))
    edit(cohort_folder / "cohort.csv", ("s01_0,c01,tumour", "s01_0,c01,Tumour"))
    assert found(cohort_folder)["bag_size_shortcut"].severity == "warning"


def test_the_size_of_the_bag_or_the_site_tells_the_label(cohort_folder: Path) -> None:
    for path in sorted((cohort_folder / "features").glob("s*[13579]_0.h5")):  # tumour: ten times the instances
        rng = np.random.default_rng(0)
        features = rng.normal(size=(300, 6)).astype(np.float32)
        save_bag(path, Bag(path.stem, features, None, {"encoder": "test", "mpp": 0.5}))
    table = cohort_folder / "cohort.csv"
    lines = table.read_text().splitlines()
    sites = ["site", *("A" if number % 2 else "B" for number in range(24))]
    table.write_text("\n".join(f"{line},{site}" for line, site in zip(lines, sites, strict=True)))
    findings = found(cohort_folder)
    for name in ("bag_size_shortcut", "site_shortcut"):
        finding = findings[name]
        assert finding.severity == "warning"
        assert finding.numbers is not None
        assert finding.numbers["auroc"] == 1.0


def test_the_shortcuts_auroc_is_honest() -> None:
    """Noise: intervals hold 0.5 about as often as they say. A known shift of normals: near Phi(d / sqrt 2)."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 75)
    cases = np.array([f"c{index}" for index in range(150)])
    holding, areas = 0, []
    for noise in (drawn := rng.normal(size=(4, 150, 1))):
        reached = shortcut_auroc(noise, labels, cases, LogisticRegression())
        assert reached is not None
        areas.append(reached[0])
        holding += reached[1] <= 0.5 <= reached[2]
    assert holding >= 3  # a cross-validated AUROC of noise lies slightly below 0.5 and spreads more than its interval
    assert abs(np.mean(areas) - 0.5) < 0.08
    shifted = drawn[-1] + (labels == "b")[:, None]
    reached = shortcut_auroc(shifted, labels, cases, LogisticRegression())
    assert reached is not None
    assert reached[0] == pytest.approx(0.760, abs=0.08)
    assert reached[1] < reached[0] < reached[2]
    assert shortcut_auroc(drawn[0, :3], np.array(["a", "a", "b"]), cases[:3], LogisticRegression()) is None


Command = Callable[..., int]


def test_the_command(cohort_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def mhim(*arguments: object) -> int:
        given = ["mhim", "doctor", "--cohort", cohort_folder / "cohort.csv", "--features", cohort_folder / "features"]
        monkeypatch.setattr("sys.argv", list(map(str, [*given, *arguments])))
        return run_app(app)

    assert mhim() == 0
    assert "0 fatal" in capsys.readouterr().err
    (cohort_folder / "features" / "s00_0.h5").unlink()
    assert mhim("--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["fatal"] == 1
    assert said["findings"][0]["check"] == "missing_bags"
    assert said["findings"][0]["slides"] == ["s00_0"]
    edit(cohort_folder / "cohort.csv", ("label", "diagnosis"))
    assert mhim() == 1
    assert "no column label" in capsys.readouterr().out
