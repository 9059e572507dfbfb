"""Sections of the report: mining, further metrics, tiles, localisation of three maps by baseline and MHIM."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mhim.artefacts import read_json, write_json
from mhim.errors import ArtefactError
from mhim.evaluation import evaluate_run
from mhim.maps import KINDS, MapConfig, Study, slide_maps
from mhim.maps.localise import localise
from mhim.report import ReportConfig, write_report
from mhim.report.curves import curves, net_benefit
from mhim.report.further import further_tables
from mhim.report.localised import localisation_tables
from mhim.report.mining import mining, mining_table
from mhim.report.pictures import BAR_STOPS, make_gallery
from mhim.report.tile_rows import TileCutter
from mhim.training.runs import Run

CONFIG = ReportConfig.model_validate({"resamples": 100, "slides": 2, "tiles": 4, "tile_px": 32})


def test_mining_is_told_of_the_run_that_masks_alone(runs: list[Run]):
    """Means over folds of the history, at its start, in the chosen epoch and at its end."""
    baseline, mhim = runs
    assert mining(baseline) == []
    assert mining_table([baseline], ["abmil"]) is None
    table = mining_table(runs, ["abmil", "mhim"])
    assert table is not None
    assert list(table.header) == ["what", "mhim: start", "mhim: chosen epoch", "mhim: end"]
    said = {row[0]: row[1:] for row in table.rows}
    histories = [mhim.history(fold) for fold in mhim.folds]
    best = [mhim.fold_info(fold)["best_epoch"] for fold in mhim.folds]
    kept = [
        np.mean([history["kept_share"].iloc[at] for history, at in zip(histories, rows, strict=True)])
        for rows in ([0, 0], best, [-1, -1])
    ]
    assert said["Kept share of instances"] == [f"{value:.3f}" for value in kept]
    overlap = np.mean([history["mask_overlap"].dropna().iloc[0] for history in histories])
    assert said["Mask shared with the epoch before"][0] == f"{overlap:.3f}"
    assert any(row.startswith("Precision") for row in said)
    assert any(row.startswith("Entropy") for row in said)
    captions = [figure.caption for figure in mining(mhim)]
    assert set(said) == set(captions)


def test_further_numbers_are_those_of_the_evaluation(runs: list[Run]):
    metrics = [evaluate_run(run, 100) for run in runs]
    tables = further_tables(["a", "b"], metrics)
    values, points, temperature, sets = tables
    rows = {row[0]: row[1:] for row in values.rows}
    for column, said in enumerate(metrics):
        brier = said["further"]["metrics"]["brier"]
        assert rows["Brier score (lower is better)"][column].startswith(f"{brier['fold_mean']:.3f} [")
    assert len(points.rows) == 2 * len(metrics[0]["further"]["operating_points"])
    youden = metrics[1]["further"]["operating_points"]["youden"]
    assert next(row for row in points.rows if row[0] == "b: Youden index")[1] == f"{youden['sensitivity']:.3f}"
    loss = metrics[0]["further"]["temperature"]["log_loss"]
    assert f"{loss['before']:.3f} to {loss['after']:.3f}" in temperature.rows[0]
    assert sets.rows[1][:3] == ["b", "90%", f"{metrics[1]['further']['conformal']['covered']:.1%}"]


def test_the_decision_curve_begins_with_everybody_called(runs: list[Run]):
    """At a threshold below every score the model calls everybody, like the dashed line."""
    figure = net_benefit(runs[0])
    assert figure.caption.startswith("Decision curve")
    lines = [
        np.array([point.split(",") for point in points.split()], dtype=float)
        for points in re.findall(r'points="([^"]+)"', str(figure.svg))
    ]
    nobody, everybody, model = lines[-3:]
    assert len(model) == 99
    np.testing.assert_allclose(model[0], everybody[0])
    assert nobody[0, 1] > model[0, 1]  # further down the page
    assert curves(runs[0], 100)[-1].caption == figure.caption


def test_a_protocol_without_validation_has_the_metrics_alone(runs: list[Run]):
    metrics = evaluate_run(runs[0], 100)
    for key in ("temperature", "conformal", "operating_points"):
        del metrics["further"][key]
    assert len(further_tables(["a"], [metrics])) == 1
    del metrics["further"]
    assert further_tables(["a"], [metrics]) == []


def test_three_maps_of_baseline_and_mhim_are_scored(runs: list[Run]):
    """Each map's rows follow each other, baseline first; lesions are those of the FROC table."""
    found = localise(Study.of(runs, MapConfig.model_validate({})), resamples=100)
    tiles, lesions = localisation_tables(found.table, found.froc, runs, 100)
    expected = [f"{name}, {run}" for name in ("Attention", "Tile probability", "Contribution") for run in _titles(runs)]
    assert [row[0] for row in tiles.rows] == expected
    assert [row[0] for row in lesions.rows] == expected
    first = found.table[found.table["run"] == "abmil"]
    for row, kind in zip(tiles.rows[::2], KINDS, strict=True):
        assert row[1] == str(len(first))
        assert row[2].startswith(f"{first[f'{kind}_auroc'].mean():.3f} [")
        assert row[-1].startswith(f"{first[f'{kind}_dice'].mean():.3f} [")
    averages = found.froc.set_index(["map", "run"])["average"]
    assert lesions.rows[1][1].startswith(f"{averages['attention', 'mhim-v1-abmil']:.3f} [")
    assert localisation_tables(pd.DataFrame(), pd.DataFrame(), runs, 100) == []


def _titles(runs: list[Run]) -> list[str]:
    return [run.config.title for run in runs]


def test_maps_on_the_page_are_the_maps_of_the_folder(runs: list[Run], maps: Path):
    """Pixels are those that the map has without its words; the bar's ends and ticks are the scale's."""
    gallery = make_gallery(runs, maps, CONFIG.model_copy(update={"slides": 14, "tiles": 0}))
    shown = next(picture for group in gallery.groups.values() for picture in group if picture.slide_id == "s01")
    drawn = slide_maps(Study.of(runs, MapConfig()), "s01", MapConfig.model_validate({"max_side_px": 288}))
    assert [column.name for column in shown.columns] == ["Attention", "Tile probability", "Contribution"]
    for column, (kind, scale) in zip(shown.columns, drawn.scales.items(), strict=True):
        for one, run in zip(column.pictures, ("abmil", "mhim-v1-abmil"), strict=True):
            expected = drawn.picture(run, kind)
            assert expected is not None
            assert one.uri is not None
            seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(one.uri.split(",")[1]))).convert("RGB"))
            assert seen.shape == expected.shape
            assert np.abs(seen.astype(float) - expected).mean() < 4
        low, high = (np.rint(255 * scale.colours(np.array([end]))[0]) for end in (scale.low, scale.high))
        for stop, rgba in zip(
            re.findall("#[0-9a-f]{6}", column.bar.gradient)[:: BAR_STOPS - 1], (low, high), strict=True
        ):
            share = rgba[3] / 255
            mixed = 255 * 0.93 * (1 - share) + rgba[:3] * share
            np.testing.assert_allclose([int(stop[at : at + 2], 16) for at in (1, 3, 5)], mixed, atol=1.5)
        for at, text in column.bar.ticks:
            assert scale.low + at / 100 * (scale.high - scale.low) == pytest.approx(float(text), rel=6e-3, abs=1e-4)


def test_a_map_that_a_model_lacks_is_said(runs: list[Run], maps: Path, tmp_path: Path):
    shutil.copytree(maps, tmp_path / "maps")
    for path in (tmp_path / "maps").glob("*/maps.json"):
        stamp = read_json(path)
        del stamp["boxes"]["abmil_contribution.png"]
        write_json(path, stamp)
    write_report(runs, tmp_path / "report.html", CONFIG, tmp_path / "maps")
    assert (tmp_path / "report.html").read_text().count("no such map") == CONFIG.slides
    write_json(path, {key: value for key, value in stamp.items() if key != "boxes"})
    with pytest.raises(ArtefactError, match="maps of an earlier version"):
        write_report(runs, tmp_path / "report.html", CONFIG.model_copy(update={"slides": 14}), tmp_path / "maps")


def test_tiles_are_the_highest_of_the_slide_and_cut_from_it(runs: list[Run]):
    cutter = TileCutter(runs[1], CONFIG)
    by_probability, by_attention = cutter.rows("s01")
    source = cutter.study.runs[0]
    bag = source.bag("s01")
    values = source.values(bag, "s01")
    assert values.probabilities is not None
    assert values.attention is not None
    assert bag.annotation_fraction is not None
    for row, scores in ((by_probability, values.probabilities[:, 1]), (by_attention, values.attention)):
        order = np.argsort(-scores, kind="stable")[:4]
        assert [tile.value for tile in row.tiles] == [f"{value:.3g}" for value in scores[order]]
        assert [tile.is_annotated for tile in row.tiles] == (bag.annotation_fraction[order] >= 0.5).tolist()
    assert by_probability.title == "Highest tile probability of tumour"
    image = Image.open(io.BytesIO(base64.b64decode(by_probability.tiles[0].uri.split(",")[1])))
    assert image.size == (32, 32)
    assert np.abs(np.asarray(image, dtype=float)[8:24, 8:24] - (200, 150, 190)).mean() < 6
    assert cutter.rows("s05") == ()
    assert cutter.notes() == ("No tiles of s05: its slide file is not there, or its bag has no coordinates.",)


@pytest.mark.parametrize("tiles", [0, 2])
def test_the_page_shows_as_many_tiles_as_asked(runs: list[Run], maps: Path, tmp_path: Path, tiles: int):
    """Of the telling slides some have no file here; the page says which."""
    out = tmp_path / "report.html"
    write_report(runs, out, CONFIG.model_copy(update={"tiles": tiles, "slides": 14}), maps)
    text = out.read_text()
    assert (
        text.count("<img") == 14 * (1 + 2 * 3) + tiles * 2 * 2
    )  # slide and three maps by two runs; two slides with a file
    assert ("No tiles of s" in text) == (tiles > 0)
    assert 'href="#mining"' in text
    assert "Conformal prediction sets" in text
    assert "Lesions (FROC)" in text
