"""Dice at the operating point of validation, and FROC of the maps of a small study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.bag import Bag, load_bag, save_bag
from mhim.froc import FALSE_ALARMS
from mhim.maps import MapConfig, Study, draw_maps, summarise_localisation
from mhim.maps.lesions import OperatingPoints, best_dice_threshold, comparable, dice
from mhim.maps.localise import localise, read_froc
from mhim.maps.values import TileValues, tile_values
from mhim.training.runs import Run, open_run

ALL = MapConfig.model_validate({"max_slides": None})


def test_dice_by_hand() -> None:
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(a, ~a) == 0.0
    assert dice(~(a | ~a), ~(a | ~a)) == 1.0


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.4, 0.4, 0.9])), min_size=1, max_size=20))
def test_no_other_threshold_has_a_higher_dice(rows: list[tuple[bool, float]]) -> None:
    inside, values = np.array([i for i, _ in rows]), np.array([v for _, v in rows])
    found = best_dice_threshold(inside, values)
    if not inside.any():
        assert found is None
        return
    assert found is not None
    best = max(dice(inside, values >= cut) for cut in values)
    assert dice(inside, values >= found) == pytest.approx(best)


def test_attention_is_compared_as_multiples_of_an_even_spread() -> None:
    even = TileValues(1, np.array([0.5, 0.5]), np.full(8, 1 / 8), None, np.arange(8.0), 0.0, 1.0)
    np.testing.assert_allclose(comparable(even, "attention"), 1.0)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(comparable(even, "contribution"), np.arange(8.0))  # pyright: ignore
    assert comparable(even, "probability") is None


def test_dice_is_taken_at_the_threshold_of_the_folds_validation_slides(runs: list[Run]) -> None:
    study = Study.of(runs[:1], ALL)
    source = study.runs[0]
    table = localise(study, resamples=50).table
    row = table.iloc[0]
    bags = [
        load_bag(source.run.config.features / f"{slide_id}.h5")
        for slide_id in source.run.predictions(row["fold"]).query("part == 'val'")["slide_id"]
    ]
    model = source.model(row["fold"])
    said = [comparable(tile_values(model, bag), "probability") for bag in bags]
    inside = np.concatenate([np.asarray(bag.annotation_fraction) >= 0.5 for bag in bags])
    threshold = best_dice_threshold(inside, np.concatenate(said))  # pyright: ignore
    bag = source.bag(row["slide_id"])
    tested = source.values(bag, row["slide_id"]).of("probability")
    expected = dice(np.asarray(bag.annotation_fraction) >= 0.5, np.asarray(tested) >= threshold)
    assert row["probability_dice"] == pytest.approx(expected)
    assert OperatingPoints(source, ["probability"]).of_fold(row["fold"])["probability"] == threshold


def test_truth_of_the_tested_slides_moves_no_threshold(study_run: Path, runs: list[Run], tmp_path: Path) -> None:
    """Turn the truth of all tested slides of a fold round: the fold's thresholds stay as they are."""
    source = Study.of(runs[:1], ALL).runs[0]
    before = OperatingPoints(source, ["attention", "probability"]).of_fold(0)
    part = source.run.predictions(0)
    turned = set(part.loc[part["part"] == "test", "slide_id"])
    for path in source.run.config.features.glob("*.h5"):
        bag = load_bag(path)
        truth = np.asarray(bag.annotation_fraction)
        changed = 1 - truth if bag.slide_id in turned else truth
        save_bag(tmp_path / path.name, Bag(bag.slide_id, bag.features, bag.xy_px0, bag.attributes, changed))
    moved = open_run(study_run / "baseline")
    object.__setattr__(moved, "config", moved.config.model_copy(update={"features": tmp_path}))
    again = OperatingPoints(Study.of([moved], ALL).runs[0], ["attention", "probability"]).of_fold(0)
    assert again == before


def test_lesions_are_found_against_false_alarms_for_every_map(runs: list[Run], tmp_path: Path) -> None:
    draw_maps(runs, tmp_path, MapConfig.model_validate({"max_slides": 1, "max_side_px": 288}))
    table = read_froc(tmp_path / "froc.csv")
    assert (
        table.groupby("run", sort=False)["map"].apply(list).tolist()
        == [["attention", "probability", "contribution"]] * 2
    )
    assert (table["n_slides"] == 14).all()
    assert (table["n_lesions"] == 7).all()  # the first six tiles of every other slide touch
    rates = table[[f"at_{rate:g}" for rate in FALSE_ALARMS]].to_numpy()
    assert (np.diff(rates, axis=1) >= 0).all()
    np.testing.assert_allclose(rates.mean(axis=1), table["average"])
    assert ((table["low"] <= table["average"]) & (table["average"] <= table["high"])).all()


def test_a_table_of_an_earlier_version_is_summarised_without_dice(runs: list[Run]) -> None:
    table = localise(Study.of(runs, ALL), resamples=50).table
    old = table.drop(columns=[name for name in table if str(name).endswith("_dice")])
    assert all(set(entry.estimates) == {"auroc", "auprc"} for entry in summarise_localisation(old, 50))
    assert all(set(entry.estimates) == {"auroc", "auprc", "dice"} for entry in summarise_localisation(table, 50))
    assert summarise_localisation(pd.DataFrame(), 50) == []
