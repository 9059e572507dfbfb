"""split, train, evaluate and convert from the command line: errors are one line, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from cohort_files import write_cohort
from mhim.cli import app
from mhim.cli.shared import run_app
from small_runs import contents

SMALL = ["--set", "model.dim=16", "--set", "model.attention_dim=8", "--set", "train.threads=1", "--device", "cpu"]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command."""
        assert self.code == 1, self
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error ")
        return line


Command = Callable[..., Ran]


@pytest.fixture
def mhim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The program, run in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["mhim", *map(str, arguments)])
        capsys.readouterr()
        code = run_app(app)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def folder(tmp_path: Path, mhim: Command) -> Path:
    """Cohort, bags and splits of 12 cases."""
    write_cohort(tmp_path, n_cases=12)
    assert mhim("split", tmp_path / "cohort.csv", "-o", tmp_path / "splits.csv", "--folds", 2).code == 0
    return tmp_path


def training(folder: Path, *more: object, out: str = "run", epochs: int = 2) -> list[object]:
    """Arguments of a small training."""
    places = ["--cohort", folder / "cohort.csv", "--features", folder / "features", "--splits", folder / "splits.csv"]
    return ["train", *places, "-o", folder / out, "--epochs", epochs, *SMALL, *more]


def test_train_then_evaluate(folder: Path, mhim: Command) -> None:
    trained = mhim(*training(folder))
    assert trained.code == 0
    assert "mhim-v1 (abmil)" in trained.out
    assert "abmil: 2 of 2 folds to train" in trained.err
    before = (folder / "run" / "metrics.json").read_bytes()
    scored = mhim("evaluate", folder / "run" / "baseline", folder / "run", "--markdown", folder / "table.md")
    assert scored.code == 0
    assert scored.out == trained.out
    assert (folder / "run" / "metrics.json").read_bytes() == before
    assert (folder / "table.md").read_text().count("\n") == 4


def test_split_twice_changes_nothing_and_another_split_is_refused(folder: Path, mhim: Command) -> None:
    arguments = ["split", folder / "cohort.csv", "-o", folder / "splits.csv"]
    before = (folder / "splits.csv").read_bytes()
    assert "already holds these folds" in mhim(*arguments, "--folds", 2).err
    again = mhim(*arguments, "--folds", 3)
    assert again.code == 1
    assert again.err.splitlines()[-1].endswith("splits.csv: holds other folds; give another --out, or --overwrite")
    assert (folder / "splits.csv").read_bytes() == before
    assert mhim(*arguments, "--folds", 3, "--overwrite").code == 0
    assert (folder / "splits.csv").read_bytes() != before


ERRORS: dict[str, tuple[list[str], str]] = {
    "missing cohort": (["--cohort", "none.csv"], "none.csv: no such table"),
    "missing features": (["--features", "none"], "none: no such folder of bags; make it with 'mhim encode'"),
    "missing splits": (["--splits", "none.csv"], "none.csv: no such table; make it with 'mhim split'"),
    "missing configuration": (["-c", "none.yaml"], "none.yaml: no such configuration file"),
    "missing plugin": (["--plugin", "none.py"], "none.py: no such plugin file"),
    "unknown key": (["--set", "train.epoch=3"], "unknown key 'train.epoch' (known: "),
    "unknown section": (["--set", "trian.epochs=3"], "unknown key 'trian' (known: allow_missing, cohort, "),
    "unknown option of the model": (["--set", "model.gate=true"], "model 'abmil': unknown key 'gate' (known: "),
    "unknown option of the mask": (
        ["--set", "method.mask={name: ham, ratio: 1}"],
        "mask 'ham': unknown key 'ratio' (known: ",
    ),
    "unknown model": (["--model", "abmill"], "unknown model 'abmill' (known: abmil, clam-mb, "),
    "no key=value": (["--set", "train.epochs"], "--set train.epochs: expected key=value"),
    "value out of range": (["--set", "train.lr=-1"], "train.lr: Input should be greater than 0"),
    "needless baseline": (["--method", "supervised", "--baseline", "b"], "--baseline b: abmil starts from no baseline"),
    "no baseline there": (["--baseline", "b"], "b: not a run folder"),
    "a file in place of the folder": (["-o", "splits.csv/run"], "splits.csv"),
}


@pytest.mark.parametrize(("arguments", "fault"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_nothing_is_written(
    arguments: list[str], fault: str, folder: Path, mhim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    ran = mhim(*training(folder), *arguments)
    assert fault in ran.err
    assert contents(folder) == before
    if arguments[0] != "-o":
        assert fault in ran.error


def test_missing_places_are_named_by_their_options(mhim: Command, tmp_path: Path) -> None:
    assert mhim("train", "-o", tmp_path / "run").error.endswith(
        "train: give --cohort, --features, --splits, or a configuration file with --config"
    )


def test_square_brackets_in_a_path_are_printed_as_they_are(mhim: Command, tmp_path: Path) -> None:
    assert "a[red]b/none.csv" in mhim("split", tmp_path / "a[red]b" / "none.csv", "-o", tmp_path / "s.csv").error


def test_an_unknown_option_is_a_usage_error(mhim: Command) -> None:
    assert mhim("train", "--epoch", 3).code == 2


def test_evaluate_names_what_is_no_run(mhim: Command, tmp_path: Path) -> None:
    assert "not a run folder (no run.json); make one with 'mhim train'" in mhim("evaluate", tmp_path).error


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["new", "over an existing run"])
def test_dry_run_writes_nothing(more: list[str], folder: Path, mhim: Command) -> None:
    if more:
        assert mhim(*training(folder, "--method", "supervised", epochs=1)).code == 0
    before = contents(folder)
    ran = mhim(*training(folder, "--dry-run", *more))
    assert ran.code == 0
    assert "mhim-v1 (abmil): 2 of 2 folds to train" in ran.err
    assert mhim("split", folder / "cohort.csv", "-o", folder / "other" / "s.csv", "--folds", 3, "--dry-run").code == 0
    assert contents(folder) == before
    assert not (folder / "other").exists()


def test_another_configuration_is_refused_until_overwrite(folder: Path, mhim: Command) -> None:
    assert mhim(*training(folder, "--method", "supervised", epochs=1)).code == 0
    before = contents(folder / "run")
    refused = mhim(*training(folder, "--method", "supervised"))
    assert "holds a run of another configuration, cohort or split; give another --out, or --overwrite" in refused.error
    assert contents(folder / "run") == before
    assert mhim(*training(folder, "--method", "supervised", "--overwrite")).code == 0
    assert contents(folder / "run") != before


def test_overwrite_replaces_a_run_that_stopped_in_its_baseline(folder: Path, mhim: Command) -> None:
    from mhim.training.crossval import train_run
    from small_runs import small_plan

    train_run(small_plan(folder, train={"epochs": 1}), folder / "run" / "baseline")
    assert "holds a run of another" in mhim(*training(folder)).error
    assert mhim(*training(folder, "--overwrite")).code == 0


def test_overwrite_does_not_remove_the_baseline_that_it_is_given(folder: Path, mhim: Command) -> None:
    assert mhim(*training(folder)).code == 0
    before = contents(folder / "run")
    inside = mhim(*training(folder, "--overwrite", "--baseline", folder / "run" / "baseline"))
    assert "--overwrite would remove it" in inside.error
    assert contents(folder / "run") == before


def test_a_given_baseline_is_left_as_it_is_and_compared_with(folder: Path, mhim: Command) -> None:
    assert mhim(*training(folder, "--method", "supervised", out="plain")).code == 0
    before = contents(folder / "plain")
    ran = mhim(*training(folder, "--baseline", folder / "plain"))
    assert ran.code == 0
    assert "abmil: 2 of 2" not in ran.err
    assert contents(folder / "plain") == before
    assert not (folder / "run" / "baseline").exists()
    (first, second) = [line for line in ran.out.splitlines() if "abmil" in line]
    assert first.split("│")[1].strip() == "abmil"
    assert "mhim-v1" in second


def test_a_file_of_keys_flags_and_settings_make_one_configuration(
    folder: Path, mhim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names components in short form, settings refine them, flags come between; places become absolute."""
    (folder / "run.yaml").write_text(
        "cohort: cohort.csv\nfeatures: features\nsplits: splits.csv\nseed: 7\nmodel: dsmil\n"
        "method: {name: mhim-v1, mask: lr-ham}\ntrain: {epochs: 9, threads: 1, device: cpu}\n"
    )
    monkeypatch.chdir(folder)
    settings = ["model.dim=8", "method.mask.mask_ratio_low=0.3", "train.patience=3"]
    more = [text for setting in settings for text in ("--set", setting)]
    ran = mhim("train", "-c", "run.yaml", "-o", "run", "--epochs", 1, *more)
    assert ran.code == 0, ran.err
    written = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert (written["model"]["name"], written["model"]["dim"]) == ("dsmil", 8)
    assert (written["method"]["mask"]["name"], written["method"]["mask"]["mask_ratio_low"]) == ("lr-ham", 0.3)
    assert (written["seed"], written["train"]["epochs"], written["train"]["patience"]) == (7, 1, 3)
    assert written["cohort"] == str(folder / "cohort.csv")
    assert written["features"] == str(folder / "features")


def test_bags_without_a_row_are_mentioned(folder: Path, mhim: Command) -> None:
    (folder / "features" / "zz.h5").write_bytes((folder / "features" / "s00_0.h5").read_bytes())
    assert "note: 1 bags have no row in" in mhim(*training(folder, "--dry-run")).err


PLUGIN = """
from mhim.models import ABMIL, models

@models.register("cli-plugged")
class Plugged(ABMIL):
    pass
"""


def test_a_plugin_model_is_trained_and_evaluated_by_its_name(folder: Path, mhim: Command) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    more = ["--plugin", folder / "mine.py", "--model", "cli-plugged", "--method", "supervised"]
    assert mhim(*training(folder, *more, epochs=1)).code == 0
    arguments = [sys.executable, "-m", "mhim", "evaluate", str(folder / "run")]
    without = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert without.returncode == 1
    assert "unknown model 'cli-plugged'" in without.stderr
    assert mhim("evaluate", folder / "run", "--plugin", folder / "mine.py").code == 0


def test_convert_reports_failures_in_a_table_and_exits_with_one(mhim: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "good.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "in" / "bad.npy", np.ones(3, np.float32))
    ran = mhim("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert ran.code == 1
    assert "1 done, 0 already complete, 1 failed" in ran.err
    assert (tmp_path / "out" / "good.h5").is_file()


def test_convert_refuses_a_choice_without_a_value(mhim: Command, tmp_path: Path) -> None:
    arguments = ["convert", tmp_path / "f.npz", "--bags", tmp_path / "b.csv", "-o", tmp_path, "--where", "task"]
    assert "--where takes column=value" in mhim(*arguments).error


def interrupt(folder: Path, *more: object) -> tuple[int, str]:
    """Exit code and standard error of a training that gets Ctrl-C, as from a terminal, after its first fold."""
    arguments = [sys.executable, "-m", "mhim", *map(str, training(folder, "--method", "supervised", *more, epochs=60))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    deadline = time.monotonic() + 600
    while not (folder / "run" / "fold_0" / "fold.json").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_completes(workers: int, folder: Path, mhim: Command) -> None:
    assert mhim("split", folder / "cohort.csv", "-o", folder / "splits.csv", "--folds", 3, "--overwrite").code == 0
    more = ["--set", "train.patience=30", "--set", "train.min_epochs=30", "--workers", workers]
    code, said = interrupt(folder, *more)
    assert code == 130
    assert said.splitlines()[-1] == "interrupted; what is finished is kept, run the same command again to go on"
    assert "Traceback" not in said
    kept = (folder / "run" / "fold_0" / "fold.json").stat().st_mtime_ns
    assert not (folder / "run" / "predictions.csv").exists()
    again = mhim(*training(folder, "--method", "supervised", *more[:-2], epochs=60))
    assert again.code == 0
    assert (folder / "run" / "fold_0" / "fold.json").stat().st_mtime_ns == kept
    assert (folder / "run" / "metrics.json").is_file()
