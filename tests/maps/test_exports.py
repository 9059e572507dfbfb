"""Exports: places and values as an independent reader finds them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mhim.bag import Bag
from mhim.cli import app
from mhim.errors import ConfigError, FeatureError, SlideError
from mhim.exports import ExportConfig, export_maps
from mhim.exports.geojson import _uuid5, write_geojson
from mhim.exports.layers import ID_SPACE, Frame, SlideLayers, frame_of, slide_layers
from mhim.exports.ome_tiff import halved, px0_per_px, write_ome_tiff
from mhim.exports.tables import write_parquet
from mhim.exports.write import study_of
from mhim.maps.lattice import Lattice
from mhim.maps.values import TileValues
from mhim.training.runs import Run
from scn_file import CORNER_PX0, MARK_PX0, SIZE_PX0, write_scn
from small_runs import contents

DEFAULT = ExportConfig()


def layers_of(xy_px0: np.ndarray, tile_px0: float, frame: Frame, attention: np.ndarray | None = None) -> SlideLayers:
    """Layers without a run: attention as given, probability that tells every tile from the others."""
    n = len(xy_px0)
    positive = np.linspace(0.05, 0.95, n)
    attention = np.full(n, 1 / n) if attention is None else attention
    probabilities = np.stack([1 - positive, positive], axis=1)
    values = TileValues(1, np.array([0.3, 0.7]), attention, probabilities, positive - 0.5, 0.1, 0.9)
    bag = Bag("slide", np.zeros((n, 2), dtype=np.float32), xy_px0, {"tile_size_level0": tile_px0})
    lattice = Lattice.of_tiles(xy_px0, tile_px0)
    return SlideLayers("slide", "run", "run", bag, tile_px0, lattice, values, ("a", "b"), frame, {"slide_id": "slide"})


def grid(columns: int, rows: int, step_px0: float, corner_px0: tuple[int, int]) -> np.ndarray:
    x, y = np.meshgrid(np.rint(np.arange(columns) * step_px0), np.rint(np.arange(rows) * step_px0))
    return np.stack([x.ravel() + corner_px0[0], y.ravel() + corner_px0[1]], axis=1).astype(np.int64)


LAYOUTS = {
    "20x, side by side": (256.0, 256.0, (37, 11)),
    "40x read at 20x": (512.0, 512.0, (1000, 3)),
    "overlap": (256.0, 192.0, (5, 700)),
    "fractional": (521.74, 521.74, (123, 456)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("corner", [(0, 0), (100, 200)])
def test_ome_tiff_shows_each_tile_at_its_place(layout: str, corner: tuple[int, int], tmp_path: Path):
    """Pillow reads what tifffile wrote: at the centre of a tile without overlap stands its own raw value."""
    from PIL import Image

    tile_px0, step, origin = LAYOUTS[layout]
    xy_px0 = grid(9, 7, step, (origin[0] + corner[0], origin[1] + corner[1]))
    size = tuple(int(side) for side in xy_px0.max(axis=0) + 2 * tile_px0 - np.array(corner))
    layers = layers_of(xy_px0, tile_px0, Frame(corner, (size[0], size[1]), 0.25, "bounds"))
    write_ome_tiff(tmp_path / "maps.ome.tiff", layers, 4096)
    scale = px0_per_px(layers, 4096)
    assert scale <= layers.lattice.cell_px0 / 2
    with Image.open(tmp_path / "maps.ome.tiff") as picture:
        assert picture.size == (-(-size[0] // scale), -(-size[1] // scale))
        for index, name in enumerate(layers.maps):
            picture.seek(index)
            seen = np.asarray(picture)
            place = ((xy_px0 + tile_px0 / 2 - np.array(corner)) // scale).astype(int)
            expected = layers.lattice.raster(layers.maps[name])
            cells = ((xy_px0 + tile_px0 / 2 - layers.lattice.origin_px0) / layers.lattice.cell_px0).astype(int)
            np.testing.assert_allclose(
                seen[place[:, 1], place[:, 0]], expected[cells[:, 1], cells[:, 0]], rtol=1e-6, err_msg=name
            )
            if step >= tile_px0:
                np.testing.assert_allclose(seen[place[:, 1], place[:, 0]], layers.maps[name], rtol=1e-6)
            assert np.isnan(seen[-1, -1])


def test_ome_tiff_is_a_named_pyramid_with_its_physical_size(tmp_path: Path):
    from xml.etree import ElementTree

    from tifffile import TiffFile

    layers = layers_of(grid(200, 150, 256, (0, 0)), 256.0, Frame((0, 0), (200 * 256, 150 * 256), 0.46, "level0"))
    write_ome_tiff(tmp_path / "maps.ome.tiff", layers, 4096)
    with TiffFile(tmp_path / "maps.ome.tiff") as file:
        assert file.is_bigtiff
        assert file.ome_metadata is not None
        series = file.series[0]
        assert series.axes == "CYX"
        assert [level.shape[1:] for level in series.levels] == [(300, 400), (150, 200)]
        np.testing.assert_array_equal(series.levels[1].asarray(), halved(series.levels[0].asarray()))
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    assert pixels is not None
    assert float(pixels.attrib["PhysicalSizeX"]) == pytest.approx(128 * 0.46)
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
    assert [channel.attrib["Name"] for channel in pixels.findall("{*}Channel")] == list(layers.maps)


def test_halving_averages_what_is_there():
    image = np.array([[[1, 3, np.nan], [5, np.nan, np.nan], [2, np.nan, 4]]], dtype=np.float32)
    np.testing.assert_array_equal(halved(image), np.array([[[3, np.nan], [2, 4]]], dtype=np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_geojson_tiles_are_squares_at_level_0_less_the_corner(layout: str, tmp_path: Path):
    from shapely.geometry import shape

    tile_px0, step, origin = LAYOUTS[layout]
    xy_px0 = grid(6, 5, step, origin)
    layers = layers_of(xy_px0, tile_px0, Frame((4, 7), (9000, 9000), 0.5, "bounds"))
    write_geojson(tmp_path / "maps.geojson", layers, ExportConfig(region_share=0.2))
    features = json.loads((tmp_path / "maps.geojson").read_text())["features"]
    tiles = [feature for feature in features if feature["properties"]["objectType"] == "tile"]
    regions = [feature for feature in features if feature["properties"]["objectType"] == "annotation"]
    assert len(tiles) == len(xy_px0)
    assert len({feature["id"] for feature in features}) == len(features)
    for feature, (x, y), probability in zip(tiles, xy_px0, layers.maps["probability"], strict=True):
        square = shape(feature["geometry"])
        assert square.is_valid
        assert square.bounds == pytest.approx((x - 4, y - 7, x - 4 + tile_px0, y - 7 + tile_px0))
        assert feature["properties"]["measurements"]["probability b"] == pytest.approx(probability)
    high = [shape(feature["geometry"]) for feature in tiles[-6:]]
    merged = high[0]
    for square in high[1:]:
        merged = merged.union(square)
    drawn = [shape(feature["geometry"]) for feature in regions]
    assert sum(part.area for part in drawn) == pytest.approx(merged.area)
    assert sum(part.symmetric_difference(merged).area for part in drawn) == pytest.approx(
        (len(drawn) - 1) * merged.area, abs=1e-6
    )


def test_regions_hold_no_tile_below_chance_unless_a_threshold_says_so(tmp_path: Path):
    layers = layers_of(grid(10, 1, 256, (0, 0)), 256.0, Frame((0, 0), (2560, 256), None, "level0"))

    def area(**options: Any) -> float:
        from shapely.geometry import shape

        write_geojson(tmp_path / "maps.geojson", layers, ExportConfig(**options))
        features = json.loads((tmp_path / "maps.geojson").read_text())["features"]
        found = [f for f in features if f["properties"]["objectType"] == "annotation"]
        return sum(shape(feature["geometry"]).area for feature in found) / 256**2

    assert area(region_share=0.9) == 5  # half of the tiles are above 0.5
    assert area(region_share=0.3) == 3
    assert area(region_share=0) == 0
    assert area(region_share=0.01) == 0
    assert area(region_threshold=0.3) == 7
    assert area(region_map="contribution", region_share=0.9) == 5


def test_a_slide_with_a_scanned_area_counts_from_its_corner(tmp_path: Path):
    """The dark rectangle, found by OpenSlide in whole-slide pixels, is where QuPath shows it: less the corner."""
    import openslide

    path = tmp_path / "slide.scn"
    write_scn(path)
    left, top, right, bottom = MARK_PX0
    with openslide.OpenSlide(path) as file:
        assert np.asarray(file.read_region((left + 8, top + 8), 0, (1, 1)))[0, 0, 1] < 60
        assert np.asarray(file.read_region((left - 8, top - 8), 0, (1, 1)))[0, 0, 1] > 200
    xy_px0 = np.array([[left, top], [left + 128, top]])
    bag = Bag("slide", np.zeros((2, 1), dtype=np.float32), xy_px0, {"tile_size_level0": 128.0, "slide_mpp": 0.5})
    frame = frame_of(bag, 128.0, path, "auto")
    assert (frame.corner_px0, frame.size_px0, frame.mpp0, frame.source) == (CORNER_PX0, SIZE_PX0, 0.5, "bounds")
    layers = dataclasses.replace(layers_of(xy_px0, 128.0, frame), bag=bag)
    write_geojson(tmp_path / "maps.geojson", layers, DEFAULT)
    collection = json.loads((tmp_path / "maps.geojson").read_text())
    first = next(f for f in collection["features"] if f["properties"]["objectType"] == "tile")
    assert first["geometry"]["coordinates"][0][0] == [left - CORNER_PX0[0], top - CORNER_PX0[1]]
    assert collection["mhim"]["corner_px0"] == list(CORNER_PX0)
    assert frame_of(bag, 128.0, path, "level0").corner_px0 == (0, 0)


def test_bounds_are_refused_where_there_are_none(study_run: Path):
    bag = Bag("slide", np.zeros((1, 1), dtype=np.float32), np.zeros((1, 2), dtype=np.int64), {})
    with pytest.raises(SlideError, match=r"s00.tif: no scanned area"):
        frame_of(bag, 64.0, study_run.parent / "s00.tif", "bounds")
    assert frame_of(bag, 64.0, study_run.parent / "s00.tif", "auto").source == "tiles"


def test_parquet_and_csv_hold_what_the_model_says(runs: list[Run], tmp_path: Path):
    config = ExportConfig(formats=("csv", "parquet"))
    result = export_maps(runs, tmp_path, config, ["s03"])
    assert not result.failed
    source = study_of(runs, config).runs[1]
    values = source.values(source.bag("s03"), "s03")
    table = pd.read_parquet(tmp_path / "s03" / "mhim-v1-abmil.parquet")
    np.testing.assert_array_equal(table["attention"], values.attention)
    np.testing.assert_array_equal(table["contribution"], values.contribution)
    np.testing.assert_array_equal(table[["x_px0", "y_px0"]], source.bag("s03").xy_px0)
    assert set(table["slide_id"]) == {"s03"}
    written = pd.read_csv(tmp_path / "s03" / "mhim-v1-abmil.csv")
    np.testing.assert_allclose(written["prob_tumour"], table["prob_tumour"], rtol=1e-9)
    assert table["contribution"].sum() + values.bias == pytest.approx(values.score, abs=1e-5)


def test_anndata_opens_with_places_and_maps(runs: list[Run], tmp_path: Path):
    anndata = pytest.importorskip("anndata", reason="anndata needs pandas 2: make test-anndata has its own environment")
    export_maps(runs, tmp_path, ExportConfig(formats=("anndata",), with_features=True), ["s03"])
    data = anndata.read_h5ad(tmp_path / "s03" / "mhim-v1-abmil.h5ad")
    source = study_of(runs, DEFAULT).runs[1]
    bag = source.bag("s03")
    assert bag.xy_px0 is not None
    np.testing.assert_array_equal(data.obsm["spatial"], bag.xy_px0 + 32)
    np.testing.assert_array_equal(data.X, bag.features)
    np.testing.assert_array_equal(data.obs["attention"], source.values(bag, "s03").attention)
    assert json.loads(data.uns["mhim"])["slide_id"] == "s03"


def test_equal_input_gives_equal_bytes_and_a_second_call_keeps_them(runs: list[Run], tmp_path: Path):
    config = ExportConfig(formats=("geojson", "ome-tiff", "csv", "parquet"))
    for folder in ("a", "b"):
        assert export_maps(runs, tmp_path / folder, config, ["s01", "s03"]).done == ["s01", "s03"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert export_maps(runs, tmp_path / "a", config, ["s01", "s03"]).skipped == ["s01", "s03"]
    other = export_maps(runs, tmp_path / "a", ExportConfig(region_share=0.5), ["s01"])
    assert "exports of another configuration" in other.failed["s01"]
    (tmp_path / "a" / "s01" / "abmil.csv").unlink()
    assert export_maps(runs, tmp_path / "a", config, ["s01"]).done == ["s01"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_verb_exports_named_slides(study_run: Path, tmp_path: Path):
    words = ["export", str(study_run), "--with-baseline", "-o", str(tmp_path / "out"), "--slides", "s01"]
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out" / "s01").iterdir()) == [
        *(f"{run}{suffix}" for run in ("abmil",) for suffix in (".csv", ".geojson", ".ome.tiff")),
        "export.json",
        *(f"mhim-v1-abmil{suffix}" for suffix in (".csv", ".geojson", ".ome.tiff")),
    ]
    bad = CliRunner().invoke(app, [*words, "--format", "svs"])
    assert isinstance(bad.exception, ConfigError)
    assert "geojson" in str(bad.exception)


def test_regions_of_a_map_that_the_model_lacks_say_so(runs: list[Run], tmp_path: Path):
    source = study_of(runs, DEFAULT).runs[0]
    layers = slide_layers(source, "s03", None, "auto")
    lacking = dataclasses.replace(layers, values=dataclasses.replace(layers.values, probabilities=None))
    with pytest.raises(ConfigError, match="abmil has no probability map for regions"):
        write_geojson(tmp_path / "maps.geojson", lacking, DEFAULT)
    write_geojson(tmp_path / "maps.geojson", lacking, ExportConfig(region_share=0))


def test_parquet_table_is_level_0_whatever_the_frame(tmp_path: Path):
    xy_px0 = grid(3, 2, 256, (500, 600))
    write_parquet(tmp_path / "t.parquet", layers_of(xy_px0, 256.0, Frame((400, 400), (2000, 2000), 0.5, "bounds")))
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "t.parquet")[["x_px0", "y_px0"]], xy_px0)


@pytest.mark.parametrize("name", ["a/b/0", "slide ä/run/99999"])
def test_ids_are_those_of_uuid5(name: str):
    """Of the prefix's hash, continued; ids of files that earlier versions wrote stay."""
    digest = hashlib.sha1(ID_SPACE.bytes + name.encode(), usedforsecurity=False).digest()
    assert _uuid5(digest) == str(uuid.uuid5(ID_SPACE, name))


def test_a_value_that_is_no_number_is_refused(tmp_path: Path):
    layers = layers_of(grid(2, 2, 64.0, (0, 0)), 64.0, Frame((0, 0), (128, 128), 0.5, "level0"))
    attention = layers.values.attention
    assert attention is not None
    attention[0] = np.nan
    with pytest.raises(FeatureError, match="no finite attention"):
        write_geojson(tmp_path / "a.geojson", layers, DEFAULT)
