"""CLAM's tissue and grid: equal to its own coordinates; every rule by hand; points in rings against OpenCV."""

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clam_oracle import coordinates
from mhim.bag import read_attributes
from mhim.cohort import read_slides
from mhim.errors import ConfigError, SlideError
from mhim.slides import open_slide
from mhim.slides.array import ArraySlide
from mhim.tile_io import load_grid
from mhim.tiles import TileConfig, TileScale, TileSpec, as_clam, clam_tiles, plan_tiles, tile_scale
from mhim.tiling import tile_slides
from mhim.tissue import Outline, TissueConfig, TissueMask, place_in_ring, segment_tissue, stored_downsamples
from mhim.tissue.clam import PRESETS, ClamPreset, clam_preset, clam_rings, segment_clam
from mhim.tissue.regions import ClamRules, filled, outlines_of

BLANK = np.zeros((4, 4), dtype=bool)
SQUARE = np.array([[10, 10], [10, 50], [50, 50], [50, 10]], dtype=np.int32)


def golden(shared):
    with np.load(shared / "golden" / "outputs" / "clam_coords.npz") as file:
        return dict(file)


def test_equal_to_the_coordinates_of_clam(shared):
    """Every case of the golden file: the same tiles, in the same order."""
    cases = golden(shared)
    for key in cases:
        settings_of, name = key.split("/")
        preset, size, step = settings_of.rsplit("_", 2)
        with open_slide(shared / "data" / "wsi_samples" / f"{name}.svs", mpp0=0.5) as slide:
            tissue = segment_tissue(slide, TissueConfig(method=f"clam:{preset}"))
            spec = TileSpec(size_px=int(size), stride_px=int(step), level=0)
            if len(cases[key]):
                found = plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, name, (1.0,))
                np.testing.assert_array_equal(found, cases[key])
            else:
                with pytest.raises(SlideError, match="no tissue found"):
                    plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, name, (1.0,))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "bone_jpeg.dcm"])
def test_equal_to_a_plain_reading(shared, preset, name):
    """Every preset and several sizes and levels against loops over tiles: the same tiles in the same order."""
    path = shared / "data" / "wsi_samples" / name
    mpp0 = None if name.endswith(".dcm") else 0.499
    with open_slide(path, mpp0=mpp0) as slide, openslide.OpenSlide(path) as file:
        tissue, downsamples = segment_tissue(slide, TissueConfig(method=f"clam:{preset}")), stored_downsamples(slide)
        for size, step, level in ((512, 512, 0), (224, 112, 0), (100, 77, 0), (33, 50, 0), (64, 64, 1)):
            if level >= len(downsamples):
                continue
            spec = TileSpec(size_px=size, stride_px=step, level=level)
            scale = tile_scale(spec, slide.mpp0, downsamples)
            found = clam_tiles(tissue, slide.size_px0, scale)
            assert list(map(tuple, found.tolist())) == coordinates(file, preset, size, step, level)


def test_the_verb_gives_the_same_and_says_the_true_scale(shared, tmp_path):
    """`--tissue clam:` alone means tiles of level 0; the file records their own mpp."""
    from typer.testing import CliRunner

    from mhim.cli import app

    source = shared / "data" / "wsi_samples" / "CMU-1-Small-Region.svs"
    words = ["tile", source, "-o", tmp_path, "--tissue", "clam:camelyon16", "--workers", "0"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    cases = golden(shared)
    path = tmp_path / "CMU-1-Small-Region.h5"
    np.testing.assert_array_equal(load_grid(path).xy_px0, cases["bwh_biopsy_256_256/CMU-1-Small-Region"])
    facts = read_attributes(path)
    assert facts["mpp"] == pytest.approx(0.499)
    assert (facts["tile_size_level0"], facts["grid"], facts["tissue_method"]) == (256, "clam", "clam:camelyon16")


@settings(deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=12),
    half=st.booleans(),
)
def test_place_in_ring_is_that_of_opencv(points, half):
    """Any polygon, crossing itself or not: the sign of pointPolygonTest at every point around it."""
    ring = np.array(points, dtype=np.int32)
    y, x = np.mgrid[-1:14, -1:14]
    asked = np.stack([x.ravel(), y.ravel()], axis=1) + (0.5 if half else 0)
    expected = [cv2.pointPolygonTest(ring.reshape(-1, 1, 2), (float(a), float(b)), False) for a, b in asked]
    np.testing.assert_array_equal(place_in_ring(ring, asked), expected)


def test_place_in_ring_on_the_border_of_a_blob():
    """A dense border as CLAM's, scaled: all points of a lattice, on and off the ring."""
    rng = np.random.default_rng(0)
    blob = cv2.GaussianBlur(rng.normal(size=(60, 60)), (0, 0), 6) > 0
    for outline in outlines_of(blob, (7.99, 8.01)):
        asked = np.stack(np.meshgrid(np.arange(0, 480, 3), np.arange(0, 480, 5)), -1).reshape(-1, 2)
        asked = np.concatenate([asked, outline.ring])
        expected = [cv2.pointPolygonTest(outline.ring.reshape(-1, 1, 2), (float(a), float(b)), False) for a, b in asked]
        np.testing.assert_array_equal(place_in_ring(outline.ring, asked), expected)


def tiles_of(outline, side, step, size=(100, 100), **rules):
    tissue = TissueMask(BLANK, (1.0, 1.0), 1.0, outlines=(outline,), clam_rules=ClamRules(**rules))
    return clam_tiles(tissue, size, TileScale(1.0, side, step)).tolist()


def test_the_grid_by_hand():
    """A square of 40 px, tiles of 16: lattice from its corner, x outer; four points decide, then the hole."""
    outline = Outline(SQUARE)
    assert tiles_of(outline, 16, 16)[:4] == [[10, 10], [10, 26], [10, 42], [26, 10]]
    assert len(tiles_of(outline, 16, 16)) == 9  # at 42 the points at 46 are inside still
    assert len(tiles_of(outline, 16, 16, contour_fn="four_pt_hard")) == 4  # and those at 54 are not
    assert len(tiles_of(outline, 16, 16, contour_fn="center")) == 9  # centres at 50 are on the ring
    assert len(tiles_of(outline, 16, 16, contour_fn="basic")) == 9
    hole = np.array([[30, 30], [30, 40], [40, 40], [40, 30]], dtype=np.int32)
    assert [26, 26] not in tiles_of(Outline(SQUARE, (hole,)), 16, 16)
    touching = np.array([[34, 30], [34, 40], [40, 40], [40, 30]], dtype=np.int32)
    assert [26, 26] in tiles_of(Outline(SQUARE, (touching,)), 16, 16)  # a centre on the hole's ring stays
    assert len(tiles_of(outline, 16, 16, size=(50, 100), use_padding=False)) == 6  # none beyond x = 34


def test_scale_of_a_level():
    """patch_level multiplies size and step by the level's downsampling, cut to a whole number."""
    scale = tile_scale(TileSpec(size_px=224, stride_px=112, level=1), 0.25, (1.0, 4.0005))
    assert (scale.mpp, scale.side_px0, scale.step_px0) == (1.0, 896, 448)
    with pytest.raises(SlideError, match=r"no pyramid level 2 \(it has 2\); use --patch-level 0"):
        tile_scale(TileSpec(level=2), 0.25, (1.0, 4.0))


def saturated(width, height, boxes):
    """White with red boxes (left, top, right, bottom)."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = (200, 100, 100)
    return pixels


def test_areas_and_holes_by_hand():
    """a_t, a_h and max_n_holes in squares of 512 level-0 px: here of 16 px, at a downsampling of 32."""
    pixels = saturated(200, 100, [(10, 10, 90, 90), (120, 40, 130, 50)])
    pixels[20:50, 20:50] = 255
    pixels[60:80, 60:80] = 255
    down = (32.0, 32.0)
    rules = {"sthresh": 8, "mthresh": 1, "close": 0}
    both = clam_rings(pixels, down, ClamPreset(a_t=0.1, a_h=1, max_n_holes=8, **rules))
    assert sorted(len(holes) for _, holes in both) == [0, 2]
    assert len(clam_rings(pixels, down, ClamPreset(a_t=1, a_h=1, max_n_holes=8, **rules))) == 1  # 81 < 256
    (_, holes), *_ = clam_rings(pixels, down, ClamPreset(a_t=1, a_h=1, max_n_holes=1, **rules))
    assert [cv2.contourArea(hole) for hole in holes] == [31 * 31 - 2]  # the ring runs through the border cells
    (_, holes), *_ = clam_rings(pixels, down, ClamPreset(a_t=1, a_h=2, max_n_holes=8, **rules))
    assert len(holes) == 1
    assert clam_rings(pixels, down, ClamPreset(a_t=20, a_h=1, **rules)) == []  # 6241 - 959 - 439 < 5120
    kept = clam_rings(pixels, down, ClamPreset(a_t=0.1, a_h=1, exclude_ids=(0,), **rules))
    assert len(kept) == 1
    assert len(clam_rings(pixels, down, ClamPreset(a_t=0.1, keep_ids=(1,), **rules))) == 1


def test_otsu_replaces_the_threshold():
    """With use_otsu the saturation threshold of the preset does not matter."""
    pixels = saturated(100, 100, [(10, 10, 90, 90)])
    found = clam_rings(pixels, (32.0, 32.0), ClamPreset(sthresh=255, mthresh=1, use_otsu=True, a_t=1))
    assert len(found) == 1
    assert clam_rings(pixels, (32.0, 32.0), ClamPreset(sthresh=255, mthresh=1, a_t=1)) == []


def test_presets_by_name_and_by_file(shared, tmp_path):
    """The files of MHIM-MIL read as the presets of that name; unknown names list the known."""
    folder = shared / "data" / "camelyon16_tcga_meta"
    assert clam_preset(str(folder / "preprocess_bwh_biopsy.csv")) == PRESETS["bwh_biopsy"] == clam_preset("camelyon16")
    assert clam_preset(str(folder / "preprocess_tcga_nsclc.csv")) == PRESETS["tcga_nsclc"]
    with pytest.raises(ConfigError, match=r"unknown CLAM preset 'bwh' \(known: .*bwh_biopsy.*tcga"):
        clam_preset("bwh")
    bad = tmp_path / "bad.csv"
    bad.write_text("seg_level,sthresh,mthres\n-1,8,7\n")
    with pytest.raises(ConfigError, match="bad.csv: unknown key 'mthres'"):
        clam_preset(str(bad))
    with pytest.raises(ConfigError, match="no.csv: CLAM preset cannot be read"):
        clam_preset("no.csv")
    with pytest.raises(ConfigError, match="unknown tissue method 'otsu'"):
        segment_tissue(ArraySlide(saturated(9, 9, []), 1.0), TissueConfig(method="otsu"))


def test_only_a_named_scale_leaves_level_zero():
    """CLAM's tissue with --target-mpp is tiled at that scale; without, at level 0; other tissue never."""
    clam = {"tissue": {"method": "clam:tcga"}}
    assert as_clam(clam)["tiles"] == {"level": 0}
    assert as_clam({**clam, "tiles": {"level": 1}})["tiles"] == {"level": 1}
    assert "tiles" not in as_clam({"tissue": {"method": "stain"}})
    slide = ArraySlide(saturated(900, 900, [(100, 100, 800, 800)]), 0.5)
    tissue = segment_clam(slide, ClamPreset(a_t=1, mthresh=1, close=0))
    exact = plan_tiles(slide.size_px0, 0.5, tissue, TileSpec(mpp=0.5, size_px=100))
    assert exact[0].tolist() == [100, 100]
    assert len(exact) == 49


def test_a_slide_too_large_or_dark(monkeypatch):
    """CLAM skips slides whose level is too large; fluorescence is refused before."""
    slide = ArraySlide(saturated(50, 50, [(10, 10, 40, 40)]), 0.5, "big")
    monkeypatch.setattr("mhim.tissue.clam.MAX_SEGMENTATION_PX", 2000)
    with pytest.raises(SlideError, match=r"big: CLAM skips slides .* \(50 x 50\); use --tissue stain"):
        segment_clam(slide, PRESETS["tcga"])
    with pytest.raises(SlideError, match="big: no pyramid level 3"):
        segment_clam(slide, ClamPreset(seg_level=3))
    black = ArraySlide(np.zeros((50, 50, 3), dtype=np.uint8), 0.5, "black")
    with pytest.raises(SlideError, match="looks like fluorescence"):
        segment_tissue(black, TissueConfig(method="clam:tcga"))


def test_filled_gives_back_the_cells():
    """Outlines of a raster, holes and islands in holes, fill the same raster again."""
    cells = np.zeros((40, 40), dtype=bool)
    cells[5:35, 5:35] = True
    cells[10:30, 10:30] = False
    cells[15:25, 15:25] = True
    cells[18:22, 18:22] = False
    np.testing.assert_array_equal(filled(outlines_of(cells, (1.0, 1.0)), cells.shape, (1.0, 1.0)), cells)


def test_clam_tiles_on_other_tissue(shared, tmp_path):
    """--grid clam takes the outlines of the default tissue; its tiles lie on it."""
    config = TileConfig(tiles=TileSpec(mpp=0.5, size_px=256, grid="clam"))
    rows = read_slides(shared / "data" / "wsi_samples" / "CMU-1-Small-Region.svs")
    assert tile_slides(rows, tmp_path, config, preview=False).failed == {}
    grid = load_grid(tmp_path / "CMU-1-Small-Region.h5")
    boxes = np.hstack([grid.xy_px0, grid.xy_px0 + 256])
    assert (grid.tissue.coverage(boxes) > 0).mean() > 0.95
    assert not (tmp_path / "previews").exists()
