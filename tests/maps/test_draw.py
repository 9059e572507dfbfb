"""Maps of a trained study: honest fold, sums, files, resume, faults."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_study import TILE_PX0

import mhim.maps.study as study_module
from mhim.artefacts import read_json
from mhim.bag import Bag, load_bag, save_bag
from mhim.errors import CohortError, FeatureError
from mhim.maps import MapConfig, Scale, Study, draw_maps, slide_maps, summarise_localisation, telling
from mhim.maps.draw import target_in_words
from mhim.maps.localise import localisation_table, tile_scores
from mhim.maps.render import draw_map
from mhim.maps.study import Prediction, unique_slugs
from mhim.maps.values import TileValues, read_values, tile_values
from mhim.models import models
from mhim.models.contract import MILModel, MILOutput
from mhim.training.runs import Run, open_run

ALL = MapConfig.model_validate({"max_slides": None})
SMALL = MapConfig.model_validate({"max_side_px": 288})


def test_maps_come_from_the_fold_that_tested_the_slide(runs: list[Run]):
    """Tile values are those of the test fold's model, and differ from every other fold's."""
    run = runs[1]
    study = Study.of([run], ALL)
    for slide_id in study.slides[:4]:
        bag = load_bag(run.config.features / f"{slide_id}.h5")
        fold = int(run.test_predictions().set_index("slide_id").loc[slide_id, "fold"])
        drawn = slide_maps(study, slide_id, ALL).values[study.runs[0].slug]
        np.testing.assert_array_equal(drawn.attention, tile_values(run.model(fold), bag).attention)
        other = tile_values(run.model(1 - fold), bag).attention
        assert other is not None
        assert drawn.attention is not None
        assert np.abs(other - drawn.attention).max() > 1e-6


def test_another_folds_model_is_refused(runs: list[Run], monkeypatch: pytest.MonkeyPatch):
    """Weights that do not reproduce the recorded test prediction are not drawn."""
    own = Run.model
    monkeypatch.setattr(Run, "model", lambda self, fold, device="cpu": own(self, 1 - fold, device))
    monkeypatch.setattr(study_module, "SAME_PROBABILITY", 1e-6)
    study = Study.of([runs[1]], ALL)
    with pytest.raises(FeatureError, match=r"off the recorded one"):
        slide_maps(study, "s03", ALL)


def test_contributions_sum_to_the_score_and_the_score_is_the_probability(runs: list[Run], tmp_path: Path):
    """Column contribution plus the stamp's bias is the log-odds of the recorded probability."""
    draw_maps(runs, tmp_path, SMALL, slides=["s05"])
    stamp = read_json(tmp_path / "s05" / "maps.json")
    recorded = runs[1].test_predictions().set_index("slide_id").loc["s05", "prob_tumour"]
    table = pd.read_csv(tmp_path / "s05" / "mhim-v1-abmil_tiles.csv")
    facts = stamp["runs"]["mhim-v1-abmil"]
    assert table["contribution"].sum() + facts["bias"] == pytest.approx(facts["score"], abs=1e-5)
    assert 1 / (1 + np.exp(-facts["score"])) == pytest.approx(recorded, abs=1e-5)
    assert table["attention"].sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(table["prob_normal"] + table["prob_tumour"], 1, atol=1e-6)
    np.testing.assert_array_equal(table[["width_px0", "height_px0"]], TILE_PX0)
    np.testing.assert_array_equal(table[["x_px0", "y_px0"]], load_bag(runs[1].config.features / "s05.h5").xy_px0)


def test_two_runs_give_all_files_and_share_scales(runs: list[Run], tmp_path: Path):
    result = draw_maps(runs, tmp_path, SMALL, slides=["s01", "s02"])
    assert result.done == ["s01", "s02"]
    names = {path.name for path in (tmp_path / "s01").iterdir()}
    maps = {f"{run}_{kind}.png" for run in ("abmil", "mhim-v1-abmil") for kind in ALL.maps}
    assert names == maps | {"thumbnail.png", "panel.png", "maps.json", "abmil_tiles.csv", "mhim-v1-abmil_tiles.csv"}
    highest = max(pd.read_csv(tmp_path / "s01" / f"{run}_tiles.csv")["attention"].max() for run in unique_slugs(runs))
    assert read_json(tmp_path / "s01" / "maps.json")["scales"]["attention"]["high"] == pytest.approx(
        max(highest, 2 / 48)
    )


def test_colours_lie_on_the_slide_where_the_tiles_are(runs: list[Run]):
    """On the real file: the strongest tile's pixels change most, pixels without tiles stay as they are."""
    maps = slide_maps(Study.of(runs, SMALL), "s00", SMALL)
    assert maps.underlay.is_slide
    assert maps.underlay.size_px == (288, 224)
    values = np.zeros(len(maps.bag))
    values[9] = 1.0  # second row, second column: x 96..160, y 128..192 at level 0, half of that here
    scale = Scale("attention", 0.0, 1.0, None, opacity=1.0, least_opacity=0.0)
    drawn = draw_map(maps.underlay, maps.lattice, values, scale)
    changed = np.abs(drawn.astype(int) - np.rint(maps.underlay.muted)).max(axis=2) > 1
    rows, columns = np.nonzero(changed)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (48, 79, 64, 95)
    np.testing.assert_array_equal(drawn[70, 60], [253, 231, 37])  # the top of viridis


def test_annotation_file_is_outlined_at_its_place(runs: list[Run]):
    maps = slide_maps(Study.of(runs, SMALL), "s01", SMALL)
    assert maps.underlay.annotation is not None
    assert maps.underlay.outlines is not None
    rows, columns = np.nonzero(maps.underlay.annotation)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (16, 111, 32, 63)
    line, _ = maps.underlay.outlines
    assert line[32, 50]
    assert not line[48, 60]


def test_without_a_slide_file_the_ground_is_plain_with_a_notice(runs: list[Run], tmp_path: Path):
    result = draw_maps([runs[1]], tmp_path, SMALL, slides=["s04"])
    assert result.exit_code == 0
    assert any("plain ground" in notice for notice in read_json(tmp_path / "s04" / "maps.json")["notices"])
    with Image.open(tmp_path / "s04" / "thumbnail.png") as image:
        assert max(image.size) <= 288


def test_a_second_run_keeps_what_is_there(runs: list[Run], tmp_path: Path):
    draw_maps(runs, tmp_path, SMALL, slides=["s00"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert draw_maps(runs, tmp_path, SMALL, slides=["s00"]).skipped == ["s00"]
    again = draw_maps(runs, tmp_path, SMALL, slides=["s00"], overwrite=True)
    assert again.done == ["s00"]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}


def test_maps_of_another_configuration_are_not_replaced(runs: list[Run], tmp_path: Path):
    draw_maps([runs[1]], tmp_path, SMALL, slides=["s00"])
    for others, config in ((runs, SMALL), ([runs[1]], MapConfig.model_validate({"max_side_px": 300}))):
        result = draw_maps(others, tmp_path, config, slides=["s00"])
        assert "--overwrite" in result.failed["s00"]
        assert "\n" not in result.failed["s00"]


@pytest.fixture
def features(runs: list[Run], tmp_path: Path) -> Path:
    """A copy of the bags, to be spoilt."""
    shutil.copytree(runs[1].config.features, tmp_path / "features")
    return tmp_path / "features"


def test_a_bag_without_coordinates_fails_alone(runs: list[Run], features: Path, tmp_path: Path):
    bag = load_bag(features / "s02.h5")
    save_bag(features / "s02.h5", replace(bag, xy_px0=None), "float32")
    config = MapConfig.model_validate({"features": features, "max_side_px": 288})
    result = draw_maps([runs[1]], tmp_path / "maps", config, slides=["s02", "s03"])
    assert result.done == ["s03"]
    assert "no coordinates" in result.failed["s02"]
    assert result.exit_code == 1


def test_tile_size_is_inferred_and_said(runs: list[Run], features: Path):
    bag = load_bag(features / "s02.h5")
    save_bag(features / "s02.h5", Bag("s02", bag.features, bag.xy_px0, {}), "float32")
    config = MapConfig.model_validate({"features": features})
    maps = slide_maps(Study.of([runs[1]], config), "s02", config)
    assert maps.tile_px0 == TILE_PX0
    assert any("spacing" in notice for notice in maps.notices)


def test_coordinates_beyond_the_slide_are_refused(runs: list[Run], features: Path):
    bag = load_bag(features / "s00.h5")
    assert bag.xy_px0 is not None
    save_bag(features / "s00.h5", replace(bag, xy_px0=bag.xy_px0 * 4), "float32")
    config = MapConfig.model_validate({"features": features})
    with pytest.raises(FeatureError, match="not level-0 pixels of this slide"):
        slide_maps(Study.of([runs[1]], config), "s00", config)


def test_a_changed_bag_is_noticed(runs: list[Run], features: Path):
    bag = load_bag(features / "s03.h5")
    save_bag(features / "s03.h5", replace(bag, features=bag.features * 3 + 1), "float32")
    config = MapConfig.model_validate({"features": features})
    with pytest.raises(FeatureError, match="off the recorded one"):
        slide_maps(Study.of([runs[1]], config), "s03", config)


def test_unknown_slide_is_one_line(runs: list[Run], tmp_path: Path):
    with pytest.raises(CohortError, match="slide nobody is in no test part"):
        draw_maps(runs, tmp_path, SMALL, slides=["nobody"])


def output(**maps: torch.Tensor | None) -> MILOutput:
    logits = torch.tensor([0.0, 1.0, 3.0])
    said = {"attention": None, "instance_scores": None} | maps
    return MILOutput(logits=logits, probabilities=logits.softmax(0), bag_embedding=torch.zeros(2), **said)  # pyright: ignore[reportArgumentType]


def test_a_model_without_a_map_says_so_and_draws_the_others(runs: list[Run], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        study_module,
        "tile_values",
        lambda model, bag: replace(tile_values(model, bag), attention=None, contribution=None),
    )
    maps = slide_maps(Study.of([runs[1]], ALL), "s03", ALL)
    assert list(maps.scales) == ["probability"]
    assert maps.picture("mhim-v1-abmil", "attention") is None
    assert "no attention map for mhim-v1 (abmil): this aggregator gives no attention" in maps.notices


def test_attention_takes_the_branch_of_the_class_else_the_mean():
    per_class = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    np.testing.assert_allclose(read_values(output(attention=per_class)).attention, [0.3, 0.7], atol=1e-6)
    heads = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(read_values(output(attention=heads)).attention, [0.25, 0.75])


def test_contribution_of_many_classes_is_to_the_predicted_logit():
    contributions = torch.tensor([[0.0, 0.5, 1.0], [-1.0, 0.25, 1.5]])
    values = read_values(output(contributions=contributions, bias=torch.tensor([1.0, 0.25, 0.5])))
    assert values.class_index == 2
    assert values.contribution is not None
    assert values.bias is not None
    assert values.contribution.sum() + values.bias == pytest.approx(values.score)
    assert values.score == pytest.approx(3.0)


@pytest.mark.parametrize("name", sorted(models))
def test_every_aggregator_has_readable_maps(name: str):
    """For any registered model: values per tile, and contributions that sum to the score where it decomposes."""
    torch.manual_seed(0)
    model = models.build(models.parse(name), 12, 2)
    features = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    values = tile_values(model, Bag("s", features))
    for kind in ALL.maps:
        of_tiles = values.of(kind)
        assert of_tiles is None or (of_tiles.shape == (20,) and np.isfinite(of_tiles).all())
    if values.contribution is not None and values.bias is not None:
        assert values.contribution.sum() + values.bias == pytest.approx(values.score, abs=1e-4)


@pytest.mark.parametrize(("name", "n_classes"), [("abmil", 2), ("clam-sb", 2), ("clam-mb", 3)])
def test_attention_is_the_softmax_of_its_score(name: str, n_classes: int):
    """Of the same branch; pooling has no such score and says so."""
    torch.manual_seed(0)
    bag = Bag("s", np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
    values = tile_values(models.build(models.parse(name), 12, n_classes), bag)
    assert values.attention_score is not None
    assert values.attention is not None
    raised = np.exp(values.attention_score - values.attention_score.max())
    np.testing.assert_allclose(raised / raised.sum(), values.attention, rtol=1e-5)
    assert tile_values(models.build(models.parse("mean"), 12, n_classes), bag).of("attention-score") is None


def test_the_score_before_the_softmax_is_drawn_when_asked_for(runs: list[Run]):
    config = MapConfig.model_validate({"maps": ["attention-score"]})
    maps = slide_maps(Study.of(runs, config), "s03", config)
    assert list(maps.scales) == ["attention-score"]
    said = [each.attention_score for each in maps.values.values()]
    assert maps.scales["attention-score"].low == min(float(each.min()) for each in said if each is not None)


def test_one_bar_of_two_classes_says_so(runs: list[Run]):
    """Models that predict different classes of many draw maps of different classes."""
    values = next(iter(slide_maps(Study.of(runs, ALL), "s03", ALL).values.values()))
    classes = ("a", "b", "c")
    assert target_in_words([values, values], classes) == ("b", False)
    said, _ = target_in_words([values, replace(values, class_index=2)], classes)
    assert said == "the class that each model predicts"


def test_scale_ends_and_opacity():
    """Raw ends; colour and opacity rise with the value; nothing is drawn where there is no tile."""
    attention = Scale.fit("attention", [np.array([0.1, 0.6, 0.3])], 2, 0.9, 0.1)
    assert (attention.low, attention.high, attention.mark) == (0.0, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert Scale.fit("probability", [np.array([0.2, 0.51])], 2, 0.9, 0.1).high == pytest.approx(0.6)
    contribution = Scale.fit("contribution", [np.array([-3.0, 1.0])], 2, 0.9, 0.1)
    assert (contribution.low, contribution.high) == (-3, 3)
    alpha = contribution.colours(np.array([-3.0, 0.0, 1.5, np.nan]))[:, 3]
    np.testing.assert_allclose(alpha, [0.9, 0.1, 0.5, 0.0], atol=1e-9)
    assert contribution.text(contribution.ticks()[-1]) == "+2"


def prediction(slide_id: str, true: str, p: float) -> Prediction:
    said = "b" if p >= 0.5 else "a"
    return Prediction(slide_id, slide_id, 0, true, said, 0.5, (1 - p, p))


def test_telling_slides_are_wrong_uncertain_and_certain_of_each_class():
    said = [prediction(f"n{i}", "a", p) for i, p in enumerate([0.02, 0.1, 0.48, 0.9])]
    said += [prediction(f"p{i}", "b", p) for i, p in enumerate([0.99, 0.8, 0.55, 0.4])]
    groups = telling(said, 6)
    assert groups == {"wrong": ["n3", "p3"], "least certain": ["n2", "p2"], "most certain": ["p0", "n0"]}
    assert sum(map(len, telling(said, 3).values())) == 3
    assert sum(map(len, telling(said, 100).values())) == len(said)


def test_localisation_scores_known_values(runs: list[Run]):
    inside = np.array([True, True, False, False])
    assert tile_scores(inside, np.array([4.0, 3, 2, 1])) == {"auroc": 1.0, "auprc": 1.0}
    assert tile_scores(inside, np.array([4.0, 1, 2, 3]))["auroc"] == 0.5
    table = localisation_table(Study.of(runs, ALL))
    assert sorted(table["slide_id"].unique()) == [f"s{case:02d}" for case in range(1, 14, 2)]
    entries = summarise_localisation(table, 200)
    assert [(entry.kind, entry.run) for entry in entries[:2]] == [
        ("attention", "abmil"),
        ("attention", "mhim-v1-abmil"),
    ]
    expected = table.loc[table["run"] == "abmil", "attention_auroc"].mean()
    assert entries[0].estimates["auroc"].value == pytest.approx(expected)
    low, high = entries[0].estimates["auroc"].interval or (0, 0)
    assert low <= expected <= high
    assert not entries[0].difference
    value = entries[1].difference["auroc"].value
    assert value == pytest.approx(entries[1].estimates["auroc"].value - expected)  # pyright: ignore[reportOptionalOperand]


def test_a_run_of_the_same_title_gets_its_own_files(study_run: Path):
    twice = [open_run(study_run), open_run(study_run)]
    assert unique_slugs(twice) == ["mhim-v1-abmil-seed0-1", "mhim-v1-abmil-seed0-2"]


def new_slides(run: Run, folder: Path, **changes: object) -> MapConfig:
    """Bags of one known and one new slide in a folder of their own, and the options that draw the new one."""
    known = load_bag(run.config.features / "s03.h5")
    save_bag(folder / "s03.h5", known)
    attributes = {**known.attributes, **changes}
    save_bag(folder / "new.h5", replace(known, slide_id="new", attributes=attributes))
    return MapConfig.model_validate({"features": folder, "fold": 1, "max_side_px": 288})


def test_a_slide_that_the_run_does_not_know_is_drawn_by_the_fold_that_was_asked_for(runs: list[Run], tmp_path: Path):
    config = new_slides(runs[1], tmp_path / "features")
    study = Study.of([runs[1]], config)
    assert study.slides == ("new",)
    expected = tile_values(runs[1].model(1), load_bag(tmp_path / "features" / "new.h5"))
    np.testing.assert_array_equal(
        slide_maps(study, "new", config).values[study.runs[0].slug].attention, expected.attention
    )
    said = study.runs[0].prediction("new")
    assert said.probabilities == tuple(expected.slide_probabilities)
    assert not said.is_wrong
    assert draw_maps([runs[1]], tmp_path / "maps", config).done == ["new"]
    assert read_json(tmp_path / "maps" / "new" / "maps.json")["runs"]


def test_a_new_slide_of_another_encoder_is_refused(runs: list[Run], tmp_path: Path):
    config = new_slides(runs[1], tmp_path / "features", encoder="other")
    result = draw_maps([runs[1]], tmp_path / "maps", config)
    assert "encoded with other, but the run with test" in result.failed["new"]


def test_a_fold_that_the_run_does_not_have_is_refused(runs: list[Run], tmp_path: Path):
    config = new_slides(runs[1], tmp_path / "features").model_copy(update={"fold": 7})
    with pytest.raises(CohortError, match="has no fold 7; it has 0, 1"):
        Study.of([runs[1]], config)


def test_new_slides_need_bags_that_the_run_does_not_know(runs: list[Run]):
    with pytest.raises(CohortError, match="no bag here of a slide that"):
        Study.of([runs[1]], MapConfig.model_validate({"fold": 0}))


def test_a_slide_is_computed_once_and_anew_when_its_features_change(runs: list[Run], monkeypatch: pytest.MonkeyPatch):
    """Drawing and scoring ask twice; values of other features are never given."""
    asked: list[str] = []

    def counted(model: MILModel, bag: Bag) -> TileValues:
        asked.append(bag.slide_id)
        return tile_values(model, bag)

    monkeypatch.setattr(study_module, "tile_values", counted)
    source = Study.of(runs[1:], MapConfig.model_validate({})).runs[0]
    bag = source.bag("s03")
    first = source.values(bag, "s03")
    assert source.values(source.bag("s03"), "s03") is first
    assert asked == ["s03"]
    with pytest.raises(FeatureError, match="have changed"):
        source.values(Bag("s03", bag.features + 3, bag.xy_px0, bag.attributes), "s03")
    assert asked == ["s03", "s03"]
    monkeypatch.setattr(study_module, "REMEMBERED_TILES", 1)
    source.values(source.bag("s04"), "s04")
    source.values(source.bag("s03"), "s03")
    assert asked == ["s03", "s03", "s04", "s03"]
