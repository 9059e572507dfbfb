"""Tiles: exact corners, geometric laws, the grid file, and the verb on good and bad input."""

import json
import multiprocessing
import os
import signal
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from mhim.bag import read_attributes
from mhim.cli import app
from mhim.cohort import read_slides
from mhim.errors import ArtefactError, FeatureError, SlideError
from mhim.tile_io import load_grid, magnification, save_grid
from mhim.tiles import TileConfig, TileGrid, TileSpec, plan_tiles, tile_boxes
from mhim.tiling import annotation_fractions, slide_rows, tile_slides
from mhim.tissue import TissueConfig, TissueMask
from slide_files import stained, write_tiff

SMALL = TileConfig(tiles=TileSpec(mpp=1.0, size_px=32), tissue=TissueConfig(mpp=2.0, min_tissue_um2=100))


def mask_of(cells, side=8.0, um=8.0):
    return TissueMask(np.array(cells, dtype=bool), (side, side), um)


def test_corners_by_hand():
    """A 6 x 6 mask with cells of 8 px, tiles of 16 px: exactly the tiles with at least half tissue."""
    tissue = mask_of(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 1, 1],
        ]
    )
    spec = TileSpec(mpp=1.0, size_px=16, min_tissue=0.5)
    xy_px0 = plan_tiles((48, 48), 1.0, tissue, spec)
    np.testing.assert_array_equal(xy_px0, [[16, 0], [0, 16], [16, 16], [32, 32]])
    xy_px0 = plan_tiles((48, 48), 1.0, tissue, TileSpec(mpp=1.0, size_px=16, min_tissue=0.75))
    np.testing.assert_array_equal(xy_px0, [[16, 16], [32, 32]])


def test_corners_of_a_fractional_size():
    """Tiles of 256 px at 0.5 on a slide of 0.499: 256.51 px each, rounded corners, no drift."""
    xy_px0 = plan_tiles((2220, 600), 0.499, mask_of(np.ones((75, 278))), TileSpec())
    assert xy_px0[:8, 0].tolist() == [0, 257, 513, 770, 1026, 1283, 1539, 1796]
    assert np.unique(xy_px0[:, 1]).tolist() == [0, 257]


def test_stride_is_at_the_target_scale():
    """Half overlap on a slide twice as fine: steps of 16 level-0 pixels, tiles of 32."""
    spec = TileSpec(mpp=1.0, size_px=16, stride_px=8)
    xy_px0 = plan_tiles((64, 32), 0.5, mask_of(np.ones((4, 8))), spec)
    assert xy_px0.tolist() == [[0, 0], [16, 0], [32, 0]]


@settings(deadline=None)
@given(
    width=st.integers(40, 400),
    height=st.integers(40, 400),
    mpp0=st.floats(0.1, 1.0),
    target=st.floats(1.0, 3.0),
    size=st.integers(16, 64),
    least=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_laws_of_a_plan(width, height, mpp0, target, size, least, seed):
    """Tiles lie inside, do not overlap by more than rounding, hold enough tissue, and are sorted by y then x."""
    cells = np.random.default_rng(seed).random((30, 30)) > 0.4
    tissue = TissueMask(cells, (width / 30, height / 30), 8.0)
    spec = TileSpec(mpp=target, size_px=size, min_tissue=least)
    side = spec.size_px0(mpp0)
    try:
        xy_px0 = plan_tiles((width, height), mpp0, tissue, spec)
    except SlideError as error:
        assert "smaller than one tile" in str(error) or "no tile holds" in str(error)  # noqa: PT017
        return
    boxes = tile_boxes(xy_px0, side)
    assert (xy_px0 >= 0).all()
    assert (boxes[:, 2] <= width + 1e-6).all()
    assert (boxes[:, 3] <= height + 1e-6).all()
    assert (tissue.coverage(boxes) >= least - 1e-6).all()
    order = np.lexsort((xy_px0[:, 0], xy_px0[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    gaps = np.abs(xy_px0[:, None, :] - xy_px0[None, :, :]).max(axis=2)[~np.eye(len(xy_px0), dtype=bool)]
    assert not len(gaps) or gaps.min() >= side - 1


def test_all_tissue_keeps_every_tile():
    """With tissue everywhere the count is the product of the whole tiles along each axis."""
    xy_px0 = plan_tiles((1000, 700), 0.5, mask_of(np.ones((88, 125))), TileSpec(mpp=0.5, size_px=64))
    assert len(xy_px0) == (1000 // 64) * (700 // 64)


@pytest.mark.parametrize(
    ("spec", "cells", "message"),
    [
        (TileSpec(mpp=0.2), np.ones((9, 9)), "target mpp 0.2 is finer than the slide's 0.5; use --target-mpp >= 0.5"),
        (TileSpec(size_px=512), np.ones((9, 9)), "300 x 300 px is smaller than one tile of 512 px"),
        (TileSpec(size_px=64), np.zeros((9, 9)), "no tissue found"),
        (TileSpec(size_px=64, min_tissue=1.0), np.eye(9), "no tile holds 100% tissue"),
    ],
)
def test_refusals(spec, cells, message):
    """Each impossible plan is one line with its fix."""
    with pytest.raises(SlideError, match=message):
        plan_tiles((300, 300), 0.5, mask_of(cells, 300 / 9), spec, "a")


def test_a_few_per_cent_finer_is_tolerated():
    """A slide of 0.5022 um gives tiles at 0.5."""
    assert len(plan_tiles((600, 300), 0.5022, mask_of(np.ones((40, 80))), TileSpec()))


def test_magnification():
    """Objective powers only where the mpp fits one."""
    assert [magnification(mpp) for mpp in (0.25, 0.2276, 0.5, 1.0, 0.7, 29.0)] == [40, 40, 20, 10, None, None]


def grid_of(count=3):
    tissue = mask_of(np.eye(5), 7.5, 4.0)
    attributes = {"slide_id": "a", "mpp": 0.5, "slide_mpp": 0.25, "tile_size_px": 256, "tile_size_level0": 512.4}
    xy_px0 = np.arange(count * 2, dtype=np.int64).reshape(count, 2)
    return TileGrid("a", xy_px0, tissue, attributes, np.linspace(0, 1, count, dtype=np.float32))


def test_grid_file_round_trip(tmp_path):
    """What is saved is loaded, and the names that TRIDENT reads are there."""
    save_grid(tmp_path / "a.h5", grid_of())
    loaded = load_grid(tmp_path / "a.h5")
    np.testing.assert_array_equal(loaded.xy_px0, grid_of().xy_px0)
    np.testing.assert_array_equal(loaded.tissue.cells, np.eye(5, dtype=bool))
    assert loaded.tissue.identity == grid_of().tissue.identity
    np.testing.assert_array_equal(loaded.annotation_fraction, np.float32([0, 0.5, 1]))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["coords"].attrs["patch_size"] == 256
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert file.attrs["target_magnification"] == 20
        assert file.attrs["level0_magnification"] == 40


def test_foreign_and_incomplete_grids(tmp_path):
    """A file without tissue, and a file that is not complete, are refused by name."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["complete"] = True
    with pytest.raises(ArtefactError, match=r"a.h5: not a grid file"):
        load_grid(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["coords"] = np.zeros((1, 2))
    with pytest.raises(FeatureError, match=r"b.h5: not marked complete"):
        load_grid(tmp_path / "b.h5")


@pytest.fixture
def slides(tmp_path):
    """Two good slides, one without mpp, one truncated, one dark."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_tiff(folder / "a.tif", stained(300, 200, (60, 40, 240, 160)), 1.0)
    write_tiff(folder / "b.tif", stained(260, 200, (30, 30, 200, 170), seed=1), 0.5, levels=2)
    write_tiff(folder / "c_no_mpp.tif", stained(300, 200, (60, 40, 240, 160)), None)
    whole = (folder / "a.tif").read_bytes()
    (folder / "d_truncated.tif").write_bytes(whole[: len(whole) // 3])
    write_tiff(folder / "e_dark.tif", np.full((200, 200, 3), 5, dtype=np.uint8), 1.0)
    return folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


FLAGS = ("--target-mpp", 1.0, "--tile-px", 32, "--set", "tissue.mpp=2", "--set", "tissue.min_tissue_um2=100")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_slides_do_not_stop_the_others(slides, tmp_path, workers):
    """Good slides are written, each bad one has a reason, the exit code is 1, nothing half-written stays."""
    result = tile_slides(read_slides(slides), tmp_path / "tiles", SMALL, workers=workers)
    assert result.done == ["a", "b"]
    assert list(result.failed) == ["c_no_mpp", "d_truncated", "e_dark"]
    assert "no mpp in its metadata" in result.failed["c_no_mpp"]
    assert "d_truncated.tif: cannot be opened" in result.failed["d_truncated"]
    assert "dark background" in result.failed["e_dark"]
    assert result.exit_code == 1
    files = sorted(path.name for path in (tmp_path / "tiles").rglob("*") if path.is_file())
    assert files == ["a.h5", "a.jpg", "b.h5", "b.jpg", "sheet.csv", "sheet.html", "sheet.jpg"]


def test_grid_of_a_drawn_slide(slides, tmp_path):
    """The tiles of a drawn rectangle are those that its edges allow; attributes carry scale and source."""
    tile_slides(read_slides(slides / "a.tif"), tmp_path, SMALL)
    grid = load_grid(tmp_path / "a.h5")
    expected = [[x, y] for y in (32, 64, 96, 128) for x in range(64, 224, 32)]
    inside = {tuple(corner) for corner in grid.xy_px0.tolist()}
    assert {tuple(corner) for corner in expected} <= inside
    assert all(32 <= x <= 224 and 32 <= y <= 160 for x, y in inside)
    assert grid.attributes["slide_mpp_source"] == "tiff_resolution"
    assert grid.attributes["tile_size_level0"] == pytest.approx(32, rel=1e-3)
    assert grid.attributes["tissue_mask_id"] == grid.tissue.identity
    assert grid.thumbnail is not None
    assert grid.thumbnail.shape == (200, 300, 3)
    with Image.open(tmp_path / "previews" / "a.jpg") as preview:
        assert preview.size == (300, 200)


def test_rerun_skips_and_a_change_is_refused(slides, tmp_path):
    """Same configuration and input: skipped. Another configuration or input: refused, replaced on request."""
    source, out = slides / "a.tif", tmp_path / "tiles"
    assert run("tile", source, "-o", out, "-j", 0, *FLAGS).exit_code == 0
    before = (out / "a.h5").stat().st_mtime_ns
    again = tile_slides(read_slides(source), out, SMALL)
    assert (again.done, again.skipped) == ([], ["a"])
    fallback = tile_slides(read_slides(source), out, SMALL, mpp0=0.3)
    assert fallback.skipped == ["a"], "a fallback mpp that is not used changes nothing"
    other = run("tile", source, "-o", out, "-j", 0, *FLAGS, "--min-tissue", 0.9)
    assert other.exit_code == 1
    text = " ".join(other.stderr.split())
    assert "another configuration" in text
    assert "--overwrite" in text
    assert (out / "a.h5").stat().st_mtime_ns == before
    write_tiff(source, stained(300, 200, (60, 40, 200, 160), seed=5), 1.0)
    changed = tile_slides(read_slides(source), out, SMALL)
    assert "another input" in changed.failed["a"]
    assert tile_slides(read_slides(source), out, SMALL, overwrite=True).done == ["a"]


def test_mpp_from_option_and_table(slides, tmp_path):
    """The cohort column wins over the file and --mpp, the file over --mpp."""
    path = slides / "c_no_mpp.tif"
    tile_slides(read_slides(path), tmp_path / "option", SMALL, mpp0=1.0)
    assert read_attributes(tmp_path / "option" / "c_no_mpp.h5")["slide_mpp_source"] == "option"
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide_id,path,mpp\nc,{path},0.8\na,{slides / 'a.tif'},0.3\n")
    tile_slides(read_slides(table), tmp_path / "table", SMALL, mpp0=1.0)
    c, a = (read_attributes(tmp_path / "table" / f"{name}.h5") for name in "ca")
    assert (c["slide_mpp"], c["slide_mpp_source"]) == (0.8, "cohort")
    assert (a["slide_mpp"], a["slide_mpp_source"]) == (0.3, "cohort")


def test_annotation_fractions_by_hand(tmp_path):
    """Half the slide is annotated on an image 10 times coarser: shares follow the box edges."""
    inside = np.zeros((20, 30), dtype=np.uint8)
    inside[:, 15:] = 7
    Image.fromarray(inside).save(tmp_path / "inside.png")
    boxes = np.array([[0, 0, 100, 100], [100, 0, 200, 100], [200, 100, 300, 200], [125, 50, 225, 150]], dtype=float)
    np.testing.assert_allclose(annotation_fractions(tmp_path / "inside.png", (300, 200), boxes), [0, 0.5, 1, 0.75])
    with pytest.raises(SlideError, match="does not have the shape of the slide"):
        annotation_fractions(tmp_path / "inside.png", (200, 300), boxes)
    with pytest.raises(SlideError, match="missing or not an image"):
        annotation_fractions(tmp_path / "none.png", (300, 200), boxes)


def test_annotation_column(slides, tmp_path):
    """A filled cell gives fractions, an empty one in the same table zeros; a table without any gives none."""
    inside = np.zeros((50, 75), dtype=np.uint8)
    inside[:, 40:] = 255
    Image.fromarray(inside).save(slides / "inside.png")
    table = slides / "cohort.csv"
    table.write_text("slide_id,path,annotation\na,a.tif,inside.png\nb,b.tif,\n")
    tile_slides(read_slides(table), tmp_path / "with", SMALL)
    a, b = (load_grid(tmp_path / "with" / f"{name}.h5") for name in "ab")
    right = a.xy_px0[:, 0].astype(float)
    np.testing.assert_allclose(a.annotation_fraction, np.clip((right + 32 - 160) / 32, 0, 1), atol=0.01)
    assert not b.annotation_fraction.any()
    table.write_text("slide_id,path,annotation\na,a.tif,\n")
    tile_slides(read_slides(table), tmp_path / "without", SMALL)
    assert load_grid(tmp_path / "without" / "a.h5").annotation_fraction is None


def test_dry_run_writes_nothing(slides, tmp_path):
    """The plan names every slide and what stands; no file appears."""
    out = tmp_path / "tiles"
    result = run("tile", slides, "-o", out, "--dry-run", *FLAGS)
    assert result.exit_code == 0
    assert "would tile 5 slides" in " ".join(result.stderr.split())
    assert "to do" in result.stderr
    assert "would fail" in result.stderr
    assert not out.exists()


def test_missing_source_and_unknown_key(tmp_path):
    """A missing path and a misspelt key are one line each."""
    from mhim.errors import CohortError, ConfigError

    with pytest.raises(CohortError, match="no such file or folder"):
        CliRunner().invoke(app, ["tile", str(tmp_path / "no"), "-o", "x"], catch_exceptions=False)
    (tmp_path / "a.tif").touch()
    words = ["tile", str(tmp_path / "a.tif"), "-o", "x", "--set", "tiles.size=3"]
    with pytest.raises(
        ConfigError, match=r"unknown key 'tiles.size' \(known: grid, level, min_tissue, mpp, size_px, stride_px\)"
    ):
        CliRunner().invoke(app, words, catch_exceptions=False)


def _write_until_killed(path, ready):
    import mhim.artefacts as artefacts

    with artefacts.atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["coords"] = np.zeros((5, 2))
        file.flush()
        ready.set()
        time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_writing(slides, tmp_path):
    """A process killed while it writes leaves nothing that reads as complete, and the next run succeeds."""
    out = tmp_path / "tiles"
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write_until_killed, args=(out / "a.h5", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "a.h5").exists()
    assert tile_slides(read_slides(slides / "a.tif"), out, SMALL).done == ["a"]


def test_help_is_light_and_has_examples():
    """Neither verb's help imports torch, OpenCV or OpenSlide."""
    import subprocess
    import sys

    code = (
        "import sys, json\nfrom typer.testing import CliRunner\nfrom mhim.cli import app\n"
        "text = [CliRunner().invoke(app, [verb, '--help']).output for verb in ('tile', 'encode')]\n"
        "print(json.dumps([text, [m for m in ('torch', 'cv2', 'openslide', 'h5py') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (tile_help, encode_help), heavy = json.loads(done.stdout)
    assert heavy == []
    assert "mhim tile cohort.csv -o tiles" in tile_help
    assert "mhim encode tiles -o features" in encode_help


@pytest.mark.parametrize(
    ("name", "mpp", "target", "tile_px", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", None, 0.5, 224, 40, 62),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.5, 0.5, 224, 150, 215),
        ("bone_jpeg2000.dcm", None, 17.0, 128, 20, 35),
        ("camelyon16_overview_multiframe.dcm", None, 29.0, 64, 60, 110),
    ],
)
def test_real_slides(shared, tmp_path, name, mpp, target, tile_px, low, high):
    """Counts on real slides whose previews were looked at."""
    config = TileConfig(tiles=TileSpec(mpp=target, size_px=tile_px))
    rows = read_slides(shared / "data" / "wsi_samples" / name)
    result = tile_slides(rows, tmp_path, config, mpp0=mpp)
    assert result.failed == {}
    assert low <= len(load_grid(tmp_path / f"{result.done[0]}.h5")) <= high


def test_a_dicom_folder_is_one_slide(shared, tmp_path):
    """Given itself or inside a folder, the files of one series are one slide with the folder's name."""
    samples = shared / "data" / "wsi_samples"
    name = "CMU-1-Small-Region-dicom"
    assert [row.slide_id for row in slide_rows(samples / name)] == [name]
    assert name in [row.slide_id for row in slide_rows(samples)]
    (tmp_path / "two").mkdir()
    for other in ("bone_jpeg.dcm", "camelyon16_overview_multiframe.dcm"):
        (tmp_path / "two" / other).symlink_to(samples / other)
    assert len(slide_rows(tmp_path / "two")) == 2
    config = TileConfig(tiles=TileSpec(mpp=1.0, size_px=128))
    assert tile_slides(slide_rows(samples / name), tmp_path / "tiles", config).done == [name]
