"""mhim split: options that exclude each other are refused, and published folds say what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.splits import read_splits

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def split(cohort_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """mhim split on the small cohort, with a site: exit code and what was said."""
    lines = (cohort_folder / "cohort.csv").read_text().splitlines()
    rows = [f"{line},{'ABC'[index // 2 % 3]}" for index, line in enumerate(lines[1:])]
    (cohort_folder / "cohort.csv").write_text("\n".join([f"{lines[0]},site", *rows]))

    def run(*arguments: str) -> tuple[int, str]:
        given = ["mhim", "split", cohort_folder / "cohort.csv", "-o", cohort_folder / "splits.csv", *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, given)))
        code = run_app(app)
        return code, " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--site", "leave-one-out", "--folds", "2"), "sets the number of folds; leave --folds out"),
        (("--use-fold-column", "--folds", "2"), "sets the number of folds; leave --folds out"),
        (("--protocol", "iccv2023-tcga", "--val-fraction", "0.3"), "draws its own folds"),
        (("--protocol", "ijcv2025-survival"), "is for --task survival, not classification"),
        (("--protocol", "ijcv2025"), "does not state the number of folds; give --folds"),
        (("--protocol", "nobody"), "protocol 'nobody' is unknown"),
    ],
)
def test_what_has_no_effect_is_refused(arguments: tuple[str, ...], message: str, split: Command) -> None:
    code, said = split(*arguments)
    assert code == 1
    assert message in said
    assert "note" not in said


def test_published_folds_are_those_of_the_first_published_seed(split: Command, cohort_folder: Path) -> None:
    code, said = split("--protocol", "iccv2023-camelyon16")
    assert code == 0
    assert "seed 2021, published (published: 2021, 2022, 2023)" in said
    assert "16 train, the test part as val, 8 test cases" in said
    first = read_splits(cohort_folder / "splits.csv")
    code, said = split("--protocol", "iccv2023-camelyon16", "--seed", "7", "--overwrite")
    assert "seed 7, not a published one" in said
    assert read_splits(cohort_folder / "splits.csv") != first


def test_the_honest_protocol_by_name_is_the_default(split: Command, cohort_folder: Path) -> None:
    assert split()[0] == 0
    code, said = split("--protocol", "honest")
    assert code == 0
    assert "already holds these folds" in said
