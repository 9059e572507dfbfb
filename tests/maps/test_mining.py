"""Hard-instance maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from typer.testing import CliRunner

from mhim.checkpoint import load_model
from mhim.cli import app
from mhim.errors import ArtefactError, ConfigError
from mhim.maps import MapConfig, Study
from mhim.maps.lattice import Lattice
from mhim.maps.mining import COLOURS, FATES, OPACITY, draw_fates, mine, saved_moments
from mhim.maps.underlay import Underlay
from mhim.training.runs import Run
from mhim.training.snapshots import MOMENTS, teacher_file
from small_runs import contents


def test_what_is_masked_follows_the_teacher(runs: list[Run]):
    """The high set lies in the teacher's top 2h, its size is ceil(N h(t)); kept is what no set took."""
    source = Study.of([runs[1]], MapConfig()).runs[0]
    bag, fold = source.bag("s03"), source.prediction("s03").fold
    assert saved_moments(source, fold) == list(MOMENTS)
    for moment in MOMENTS:
        mined = mine(source, bag, fold, moment)
        teacher = load_model(teacher_file(source.run.fold_path(fold), moment))
        with torch.inference_mode():
            attention = teacher(torch.from_numpy(bag.features)).attention
        assert attention is not None
        np.testing.assert_allclose(mined.salience, attention[0].double().numpy(), rtol=1e-6)
        progress = min(mined.epochs_done, mined.epochs - 1) / mined.epochs
        size = int(np.ceil(len(bag) * 0.01 * 0.5 * (1 + np.cos(np.pi * progress))))
        assert mined.high.sum() == size
        candidates = np.argsort(-mined.salience)[: 2 * size]
        assert set(np.flatnonzero(mined.high)) <= set(candidates)
        assert mined.random.sum() == np.ceil(len(bag) / 2)
        np.testing.assert_array_equal(mined.kept, ~(mined.high | mined.low | mined.random))
        np.testing.assert_array_equal(np.array(FATES)[mined.fate] == "high", mined.high)
    again = mine(source, bag, fold, "start")
    np.testing.assert_array_equal(again.random, mine(source, bag, fold, "start").random)
    assert (again.random != mine(source, bag, fold, "start", seed=1).random).any()


def test_every_tile_has_the_colour_of_its_fate():
    xy_px0 = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    lattice = Lattice.of_tiles(xy_px0, 100.0)
    ground = Underlay(np.full((20, 20, 3), 250, dtype=np.uint8), (0.0, 0.0), (10.0, 10.0), is_slide=False)
    picture = draw_fates(ground, lattice, np.arange(4))
    for index, (x, y) in enumerate(xy_px0 // 10 + 5):
        expected = (1 - OPACITY) * 250 + OPACITY * np.array(COLOURS[FATES[index]])
        np.testing.assert_allclose(picture[y, x], expected, atol=0.51)


def test_verb_draws_and_lists(study_run: Path, tmp_path: Path):
    words = ["mining", str(study_run), "-o", str(tmp_path / "out"), "--slides", "s03", "--moment", "start"]
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, words).exit_code == 0
    table = pd.read_csv(tmp_path / "out" / "s03" / "mhim-v1-abmil_mining.csv")
    masked = table[["start_high", "start_low", "start_random"]].any(axis=1)
    np.testing.assert_array_equal(table["start_kept"] == 1, ~masked)
    assert (tmp_path / "out" / "s03" / "mhim-v1-abmil_mining.png").is_file()
    bad = CliRunner().invoke(app, [*words[:-1], "end"])
    assert isinstance(bad.exception, ConfigError)


def test_a_second_call_keeps_what_is_there_and_refuses_other_options(study_run: Path, tmp_path: Path):
    """A folder that lacks a file is drawn anew, to the same bytes."""
    words = ["mining", str(study_run), "-o", str(tmp_path), "--slides", "s03", "--moment", "best"]
    assert "1 done" in CliRunner().invoke(app, words).output
    before = contents(tmp_path)
    assert "1 already complete" in CliRunner().invoke(app, words).output
    (tmp_path / "s03" / "mhim-v1-abmil_mining.png").unlink()
    assert "1 done" in CliRunner().invoke(app, words).output
    assert contents(tmp_path) == before
    other = CliRunner().invoke(app, [*words, "--seed", "5"])
    assert other.exit_code == 1
    assert contents(tmp_path) == before
    assert CliRunner().invoke(app, [*words, "--seed", "5", "--overwrite"]).exit_code == 0
    assert contents(tmp_path) != before


def test_a_plain_run_has_no_teacher(study_run: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["mining", str(study_run / "baseline"), "-o", str(tmp_path)])
    assert isinstance(result.exception, ArtefactError)
    assert "no teacher kept" in str(result.exception)
