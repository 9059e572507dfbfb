"""Figure and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from mhim.cli import app
from mhim.errors import ConfigError, SlideError
from mhim.maps import MapConfig, Study
from mhim.maps.figure import write_figure
from mhim.maps.panel import SHEET_CELL_PX, Caption, sheet
from mhim.maps.sheets import rank_tiles, ranked_tiles, read_tiles, write_sheets
from mhim.training.runs import Run


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_equal_input_gives_equal_figures(runs: list[Run], tmp_path: Path, suffix: str):
    study = Study.of(runs, MapConfig())
    for name in ("a", "b"):
        write_figure(tmp_path / f"{name}{suffix}", study, "s01", MapConfig(), dpi=60)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    if suffix == ".svg":
        words = (tmp_path / "a.svg").read_text()
        for text in ("Attention", "Tile probability", "Contribution", "mhim-v1 (abmil)", "true tumour"):
            assert text in words


def test_another_suffix_is_refused(runs: list[Run], tmp_path: Path):
    with pytest.raises(ConfigError, match="figures are written as .png, .pdf, .svg"):
        write_figure(tmp_path / "a.gif", Study.of(runs, MapConfig()), "s01", MapConfig())


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_ranked_tiles_are_the_best_that_the_limit_allows(slides: list[list[int]], data: st.DataObject):
    count, per_slide = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    highest = data.draw(st.booleans())
    chosen = rank_tiles([np.array(values, dtype=float) for values in slides], count, per_slide, highest)
    pool = [sorted(values, reverse=highest)[:per_slide] for values in slides]
    expected = sorted((value for values in pool for value in values), reverse=highest)[:count]
    assert [slides[slide][tile] for slide, tile in chosen] == expected
    assert len(set(chosen)) == len(chosen)
    assert all(sum(slide == other for other, _ in chosen) <= per_slide for slide in range(len(slides)))


def test_tiles_are_cut_where_the_bag_says(runs: list[Run]):
    """The pixels of a ranked tile are those of the slide at its corner, at the scale of the encoder."""
    import openslide

    study = Study.of(runs, MapConfig())
    source = study.runs[1]
    ranked = ranked_tiles(source, ["s00", "s01"], count=3, per_slide=2)
    tumour = next(tiles for tiles in ranked if tiles.class_name == "tumour")
    pictures = read_tiles(study, source, tumour.top)
    with openslide.OpenSlide(study.rows["s00"].path) as file:  # both slides show the same
        for tile, picture in zip(tumour.top, pictures, strict=True):
            assert picture is not None
            expected = np.asarray(file.read_region(tile.xy_px0, 0, (64, 64)).convert("RGB"))
            np.testing.assert_array_equal(picture, expected)
    for tile in tumour.top:
        values = source.values(source.bag(tile.slide_id), tile.slide_id)
        assert values.probabilities is not None
        assert tile.score == values.probabilities[tile.index, 1]


def test_sheets_list_what_they_show(study_run: Path, tmp_path: Path):
    words = ["sheet", str(study_run), "-o", str(tmp_path / "sheets"), "--slides", "s00,s01", "--tiles", "4"]
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not (tmp_path / "sheets").exists()
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "sheets" / "mhim-v1-abmil_tumour.csv")
    assert table["end"].tolist() == ["highest"] * 4 + ["lowest"] * 4
    assert table["probability"][:4].is_monotonic_decreasing
    assert table["probability"][4:].is_monotonic_increasing
    assert table.groupby(["end", "slide_id"]).size().max() <= 3
    assert sorted(path.suffix for path in (tmp_path / "sheets").iterdir()) == [".csv", ".csv", ".png", ".png"]


def test_sheets_need_a_slide_file(runs: list[Run], tmp_path: Path):
    with pytest.raises(SlideError, match="no slide file is there"):
        write_sheets(Study.of(runs, MapConfig()), tmp_path, ["s03"])


def test_sheet_shows_every_picture_at_its_own_size():
    pictures = [np.full((40, 40, 3), shade, dtype=np.uint8) for shade in (10, 60, 110)]
    image = np.asarray(sheet(Caption("title"), [("high", [("words", picture) for picture in pictures])], columns=2))
    for shade in (10, 60, 110):
        rows, columns = np.nonzero((image == shade).all(axis=2))
        inside = image[rows.min() : rows.min() + 40, columns.min() : columns.min() + 40]
        assert (inside == shade).all()
    left = np.nonzero((image == 60).all(axis=2))[1].min() - np.nonzero((image == 10).all(axis=2))[1].min()
    assert left == SHEET_CELL_PX + 6


def test_figure_verb(study_run: Path, tmp_path: Path):
    words = ["figure", str(study_run), "--with-baseline", "--slide", "s01", "-o", str(tmp_path / "f.png")]
    assert CliRunner().invoke(app, [*words, "--dpi", "50"]).exit_code == 0
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > picture.height


def test_figure_verb_takes_runs_by_name_and_names_its_file(
    study_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "abmil").symlink_to(study_run / "baseline")
    (tmp_path / "runs" / "mhim-abmil").symlink_to(study_run)
    monkeypatch.chdir(tmp_path)
    words = ["figure", "--slide", "s01", "--dpi", "50"]
    assert CliRunner().invoke(app, [*words, "--runs", "abmil,mhim-abmil"]).exit_code == 0
    given = CliRunner().invoke(app, [*words, "runs/abmil", "runs/mhim-abmil", "-o", "given.png"])
    assert given.exit_code == 0
    assert Path("figure_s01.png").read_bytes() == Path("given.png").read_bytes()
    none = CliRunner().invoke(app, words)
    assert isinstance(none.exception, ConfigError)
    assert "name run folders" in str(none.exception)
