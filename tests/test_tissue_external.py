"""Tissue from outside, blur, pictures and the sheet of a cohort."""

import csv
import gzip
import json

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mhim.cli import app
from mhim.cohort import read_slides
from mhim.errors import ConfigError, SlideError
from mhim.slides.array import ArraySlide
from mhim.tile_io import load_grid, save_grid
from mhim.tile_preview import REJECTED_COLOUR, draw_preview
from mhim.tile_sheet import SheetRow, flagged, robust_deviations, slide_values, write_sheet
from mhim.tiles import TileConfig, TileGrid, TileSpec, plan_tiles
from mhim.tiling import tile_slides
from mhim.tissue import TissueConfig, TissueMask, mask_file, read_mask, segment_tissue
from slide_files import stained, write_tiff

RING = [[10, 20], [110, 20], [110, 70], [10, 70], [10, 20]]
HOLE = [[30, 30], [50, 30], [50, 50], [30, 50], [30, 30]]


def geojson(*rings, kind="Polygon"):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": list(rings)}, "properties": {}}


def write(path, document):
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "document",
    [
        geojson(RING, HOLE),
        {"type": "FeatureCollection", "features": [geojson(RING, HOLE)]},
        [geojson(RING, HOLE)],
        geojson([RING, HOLE], kind="MultiPolygon")["geometry"],
    ],
)
def test_polygons_by_hand(tmp_path, document):
    """A rectangle with a hole, however wrapped: its area, its tiles and its identity."""
    mask = read_mask(write(tmp_path / "a.geojson", document), (200, 100), 0.5)
    expected = np.zeros((100, 200), dtype=bool)
    expected[20:71, 10:111] = True
    expected[31:50, 31:50] = False
    np.testing.assert_array_equal(mask.cells, expected)
    assert (mask.um_per_cell, mask.method) == (0.5, "file:a.geojson")
    spec = TileSpec(size_px=10, min_tissue=0.95)
    xy_px0 = plan_tiles((200, 100), 0.5, mask, spec)
    assert len(xy_px0) == 50 - 4  # the hole takes four


def test_compressed_geojson_and_large_slides(tmp_path):
    """.geojson.gz is read; the raster of a large slide stays small and keeps the share of its area."""
    big = [[x * 500, y * 500] for x, y in RING]
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps(geojson(big)).encode()))
    mask = read_mask(path, (100_000, 50_000), 0.25)
    assert max(mask.cells.shape) == 4096
    assert mask.fraction == pytest.approx(100 * 50 / 20_000, rel=0.005)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}, "no polygon in the file"),
        (geojson([[0, 0], [1, 1]]), "a ring needs at least three finite points"),
        (geojson([[0, 0], [900, 0], [900, 50]]), r"reach from \[0, 0\] to \[900, 50\], outside the slide of 200 x 100"),
        ({"type": "Topology"}, "not GeoJSON"),
        (3, "not GeoJSON"),
    ],
)
def test_bad_polygons(tmp_path, document, message):
    """Each fault is one line that names the file."""
    with pytest.raises(SlideError, match=rf"a.geojson: .*{message}"):
        read_mask(write(tmp_path / "a.geojson", document), (200, 100), 0.5)


def test_mask_images(tmp_path):
    """Non-zero is tissue at any scale; another shape, no tissue and no image are refused."""
    inside = np.zeros((50, 100), dtype=np.uint8)
    inside[10:20, 30:60] = 1
    Image.fromarray(inside).save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png", (400, 200), 0.25)
    assert mask.px0_per_cell == (4.0, 4.0)
    assert mask.um_per_cell == 1.0
    np.testing.assert_array_equal(mask.cells, inside > 0)
    with pytest.raises(SlideError, match="does not have the shape of the slide"):
        read_mask(tmp_path / "a.png", (400, 400), 0.25)
    Image.fromarray(inside * 0).save(tmp_path / "b.png")
    with pytest.raises(SlideError, match=r"b.png: the tissue mask is empty"):
        read_mask(tmp_path / "b.png", (400, 200), 0.25)
    with pytest.raises(SlideError, match="missing or not an image"):
        read_mask(tmp_path / "c.png", (400, 200), 0.25)


def test_the_file_of_a_slide(tmp_path):
    """By the slide's name, dots and all; two candidates or none are refused."""
    write(tmp_path / "TCGA.1.geojson", geojson(RING))
    assert mask_file(tmp_path, "TCGA.1").name == "TCGA.1.geojson"
    with pytest.raises(SlideError, match="TCGA: no tissue mask in"):
        mask_file(tmp_path, "TCGA")
    (tmp_path / "TCGA.1_mask.png").touch()
    with pytest.raises(SlideError, match=r"two tissue masks .*TCGA.1.geojson, TCGA.1_mask.png"):
        mask_file(tmp_path, "TCGA.1")


def test_the_verb_takes_masks(tmp_path):
    """--tissue-mask replaces the search; a slide without its mask fails alone; another mask is another input."""
    for name in "ab":
        write_tiff(tmp_path / f"{name}.tif", stained(256, 192, (30, 30, 200, 150)), 1.0)
    masks = tmp_path / "masks"
    masks.mkdir()
    write(masks / "a.geojson", geojson([[0, 0], [64, 0], [64, 64], [0, 64]]))
    words = ["tile", str(tmp_path), "-o", str(tmp_path / "out"), "--target-mpp", "1", "--tile-px", "32"]
    words += ["--tissue-mask", str(masks), "--workers", "0", "--min-tissue", "0.9"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "b: no tissue mask in" in " ".join(result.stderr.split())
    grid = load_grid(tmp_path / "out" / "a.h5")
    assert grid.xy_px0.tolist() == [[0, 0], [32, 0], [0, 32], [32, 32]]
    assert grid.attributes["tissue_method"] == "file:a.geojson"
    write(masks / "a.geojson", geojson([[0, 0], [96, 0], [96, 64], [0, 64]]))
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        before = file.attrs["input_fingerprint"]
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 1
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert file.attrs["input_fingerprint"] != before
    with pytest.raises(ConfigError, match="one file for 2 slides; give a folder"):
        CliRunner().invoke(app, [*words, "--tissue-mask", str(masks / "a.geojson")], catch_exceptions=False)


def test_the_table_gives_the_mask_of_a_slide(tmp_path):
    """Column tissue_mask: where it is filled it wins over the folder and the search; another mask is another input."""
    for name in "ab":
        write_tiff(tmp_path / f"{name}.tif", stained(256, 192, (30, 30, 200, 150)), 1.0)
    write(tmp_path / "a.geojson", geojson([[0, 0], [64, 0], [64, 64], [0, 64]]))
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,path,tissue_mask\na,a.tif,a.geojson\nb,b.tif,\n")
    config = TileConfig(tiles=TileSpec(mpp=1.0, size_px=32, min_tissue=0.9))
    assert tile_slides(read_slides(table), tmp_path / "out", config).done == ["a", "b"]
    a, b = (load_grid(tmp_path / "out" / f"{name}.h5") for name in "ab")
    assert a.xy_px0.tolist() == [[0, 0], [32, 0], [0, 32], [32, 32]]
    assert (a.attributes["tissue_method"], b.attributes["tissue_method"]) == ("file:a.geojson", "stain")
    assert tile_slides(read_slides(table), tmp_path / "out", config).skipped == ["a", "b"]
    write(tmp_path / "a.geojson", geojson([[0, 0], [96, 0], [96, 64], [0, 64]]))
    again = tile_slides(read_slides(table), tmp_path / "out", config)
    assert (again.skipped, list(again.failed)) == (["b"], ["a"])
    assert "another input" in again.failed["a"]
    (tmp_path / "a.geojson").unlink()
    gone = tile_slides(read_slides(table), tmp_path / "other", config)
    assert (gone.done, list(gone.failed)) == (["b"], ["a"])
    assert "no such file" in gone.failed["a"]


def test_blur_is_left_out(shared):
    """The blurred half of a real region goes, the sharp half stays."""
    from mhim.slides import open_slide

    with open_slide(shared / "data" / "wsi_samples" / "tcga-cr-7395-01a-01-ts1.svs", mpp0=0.5) as slide:
        pixels = slide.read((400, 1500), (1000, 1000), 1.0)
    half = pixels.copy()
    half[:, 500:] = cv2.GaussianBlur(pixels, (0, 0), 8)[:, 500:]
    slide = ArraySlide(half, 1.0)
    config = TissueConfig(mpp=8.0, reject_blur=True)
    mask = segment_tissue(slide, config)
    everything = segment_tissue(slide, TissueConfig(mpp=8.0)).cells
    columns = mask.cells.shape[1]
    left, right = slice(0, columns // 2 - 8), slice(columns // 2 + 8, columns)
    assert mask.cells[:, left].sum() > 0.95 * everything[:, left].sum()
    assert mask.cells[:, right].sum() < 0.05 * everything[:, right].sum()
    assert mask.rejected is not None
    assert mask.rejected[:, right].any()


def grid_of(name, cells, tiles, colour=(200, 120, 170), rejected=None):
    """A grid of a slide of 400 x 400 px with cells of 10 px."""
    thumbnail = np.full((40, 40, 3), 240, dtype=np.uint8)
    thumbnail[cells] = colour
    facts = {"slide_id": name, "level0_width": 400, "tile_size_level0": 40.0, "tissue_method": "stain"}
    xy_px0 = np.array([[40 * (i % 10), 40 * (i // 10)] for i in range(tiles)], dtype=np.int64)
    return TileGrid(name, xy_px0, TissueMask(cells, (10.0, 10.0), 10.0, rejected=rejected), facts, thumbnail=thumbnail)


def some_cells(rows):
    cells = np.zeros((40, 40), dtype=bool)
    cells[5 : 5 + rows, 5:35] = True
    return cells


def test_preview_shows_outline_tiles_and_what_was_left_out():
    """Green on the outline, blue on the tiles' sides, orange over ink; untouched elsewhere."""
    rejected = np.zeros((40, 40), dtype=bool)
    rejected[38:, 38:] = True
    picture = draw_preview(grid_of("a", some_cells(20), 1, rejected=rejected))
    assert picture is not None
    assert picture[5, 20].tolist() == [0, 160, 0]
    assert picture[0, 0].tolist() == [40, 90, 200]
    np.testing.assert_allclose(picture[39, 39], (240 + np.array(REJECTED_COLOUR)) / 2, atol=1)
    assert picture[30, 2].tolist() == [240, 240, 240]


def test_rejected_cells_and_method_are_stored(tmp_path):
    """What was left out and by what method come back from the file."""
    rejected = ~some_cells(20)
    save_grid(tmp_path / "a.h5", grid_of("a", some_cells(20), 3, rejected=rejected))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["tissue_method"] == "stain"
    tissue = load_grid(tmp_path / "a.h5").tissue
    assert tissue.rejected is not None
    np.testing.assert_array_equal(tissue.rejected, rejected)


def test_robust_deviations_by_hand():
    """1.4826 times the median distance from the median; the floor keeps even values unflagged."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0, np.nan])
    expected = (values - 3) / 1.4826
    np.testing.assert_allclose(robust_deviations(values), expected)
    np.testing.assert_allclose(robust_deviations(values, 10.0), (values - 3) / 10)
    assert not robust_deviations(np.array([2.0, 2.0, 2.0])).any()


def test_flags_say_what_and_how_much():
    """A slide with a tenth of the tissue stands out among equals; among four nothing does."""
    values = slide_values(grid_of("a", some_cells(20), 50))
    assert values["tissue_share"] == 600 / 1600
    assert values["tissue_mm2"] == pytest.approx(600 * 1e-4)
    assert (values["red"], values["green"], values["blue"], values["glass"]) == (200, 120, 170, 240)
    rows = [SheetRow(str(i), values) for i in range(5)] + [SheetRow("odd", {**values, "n_tiles": 5.0, "red": 90.0})]
    *others, odd = flagged(rows)
    assert all(row.flags == () for row in others)
    assert odd.flags[0] == "number of tiles 5, cohort's median 50 (15.4 robust deviations below)"
    assert odd.flags[1].startswith("red of the tissue 90, cohort's median 200 (22.0 robust")
    assert flagged(rows[3:])[-1].flags == ()


def test_the_sheet(tmp_path):
    """CSV, page and picture over all slides; names are escaped, flagged slides come first."""
    names = ["a", "b", "c", "d", "e", "f<g"]
    paths = [tmp_path / f"{index}.h5" for index in range(6)]
    for name, path in zip(names, paths, strict=True):
        odd = name == "f<g"
        save_grid(path, grid_of(name, some_cells(2 if odd else 20), 2 if odd else 50))
    rows = write_sheet(tmp_path, paths)
    assert [bool(row.flags) for row in rows] == [False] * 5 + [True]
    with (tmp_path / "previews" / "sheet.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert [row["slide_id"] for row in table] == names
    assert table[5]["flags"].startswith("share of tissue 0.0375, cohort's median 0.375")
    page = (tmp_path / "previews" / "sheet.html").read_text()
    assert "6 slides, 1 stand out" in page
    assert page.index("f&lt;g") < page.index(">a<")
    assert "f<g" not in page
    with Image.open(tmp_path / "previews" / "sheet.jpg") as picture:
        assert picture.size == (1200, 200)


def test_trident_grid():
    """One lattice from the corner, x outer; a slide of 0.265 counts as 40 x, so tiles are 512 px; any tissue counts."""
    cells = np.zeros((40, 40), dtype=bool)
    cells[20, 20] = True
    tissue = TissueMask(cells, (100.0, 100.0), 26.5)
    spec = TileSpec(mpp=0.5, size_px=256, grid="trident", stride_px=128)
    xy_px0 = plan_tiles((4000, 4000), 0.265, tissue, spec)
    assert xy_px0.tolist() == [[x, y] for x in (1536, 1792, 2048) for y in (1536, 1792, 2048)]
