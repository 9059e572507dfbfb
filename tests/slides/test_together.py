"""Slides of one cohort beside each other: guessed scales among known ones, mixed readers, what is said about them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from mhim.cohort import read_slides
from mhim.errors import ConfigError, SlideError
from mhim.slides.together import check_given_mpp, mixes_guesses, reading_notes, refuse_guess
from mhim.tile_io import load_grid
from mhim.tiles import TileConfig, TileSpec
from mhim.tiling import tile_slides
from slide_files import stained, write_tiff

SMALL = TileConfig(tiles=TileSpec(mpp=1.0, size_px=32))


def write_guessable(path):
    """An Aperio-like file that states its objective power and no mpp."""
    pixels = stained(256, 192, (30, 30, 200, 150))
    text = "Aperio Image\n256x192|AppMag = 10"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", description=text, metadata=None)


@pytest.fixture
def cohort(tmp_path):
    """One slide that states its scale, one whose scale can only be guessed (10x: 1 um)."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_tiff(folder / "known.tif", stained(256, 192, (30, 30, 200, 150)), 1.0)
    write_guessable(folder / "guessed.svs")
    return folder


def test_a_guess_among_known_scales_is_refused(cohort, tmp_path):
    """The guessed slide fails with the way out; the other goes on."""
    result = tile_slides(read_slides(cohort), tmp_path / "out", SMALL)
    assert (result.done, list(result.failed)) == (["known"], ["guessed"])
    assert "a guess from the objective power, other slides state theirs" in result.failed["guessed"]
    assert "--force-scale" in result.failed["guessed"]


def test_a_guess_can_be_forced_or_stated(cohort, tmp_path):
    """--force-scale and the column mpp both let it pass, and the source says which."""
    forced = tile_slides(read_slides(cohort), tmp_path / "forced", SMALL, force_scale=True)
    assert forced.done == ["guessed", "known"]
    assert load_grid(tmp_path / "forced" / "guessed.h5").attributes["slide_mpp_source"] == "objective_power"
    assert any("guessed or forced" in remark for remark in forced.remarks)
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,path,mpp\nguessed,slides/guessed.svs,1.0\nknown,slides/known.tif,\n")
    stated = tile_slides(read_slides(table), tmp_path / "stated", SMALL)
    assert stated.done == ["guessed", "known"]
    assert load_grid(tmp_path / "stated" / "guessed.h5").attributes["slide_mpp_source"] == "cohort"
    assert not any("guessed" in remark for remark in stated.remarks)


def test_guesses_alone_pass_with_a_warning(cohort, tmp_path):
    (cohort / "known.tif").unlink()
    result = tile_slides(read_slides(cohort), tmp_path / "out", SMALL)
    assert result.done == ["guessed"]
    assert any("guessed or forced (slide_mpp_source objective_power: 1)" in remark for remark in result.remarks)


def test_a_folder_of_pictures_is_tiled(tmp_path):
    """PNG and JPEG have no scale of their own: --mpp gives it."""
    pixels = stained(256, 192, (30, 30, 200, 150))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.jpg", quality=95)
    assert list(tile_slides(read_slides(tmp_path), tmp_path / "none", SMALL).failed) == ["a", "b"]
    assert tile_slides(read_slides(tmp_path), tmp_path / "out", SMALL, mpp0=1.0).done == ["a", "b"]
    a, b = (load_grid(tmp_path / "out" / f"{name}.h5") for name in "ab")
    assert a.attributes["reader"] == "image"
    np.testing.assert_array_equal(a.xy_px0, b.xy_px0)


def test_mixing():
    assert not mixes_guesses([])
    assert not mixes_guesses(["objective_power", None, "objective_power"])
    assert not mixes_guesses(["metadata", "cohort", None])
    assert mixes_guesses(["metadata", "objective_power"])
    refuse_guess(0.5, "metadata", "a")
    with pytest.raises(SlideError, match=r"a: its scale \(0.5\) is a guess"):
        refuse_guess(0.5, "objective_power", "a")
    for mpp in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="not a scale"):
            check_given_mpp(mpp)


def test_nothing_is_said_about_slides_read_alike():
    same = {"reader": "tiff", "slide_mpp_source": "metadata", "notes": ""}
    assert reading_notes([]) == []
    assert reading_notes([same, same]) == []


def test_readers_scales_and_notes_are_counted():
    """Most common first; at most five notes, then their number."""
    slides = [{"reader": "tiff", "slide_mpp_source": "metadata", "notes": f"n{i}\nm{i}"} for i in range(3)]
    slides.append({"reader": "openslide", "slide_mpp_source": "cohort_forced", "notes": ""})
    lines = reading_notes(slides)
    assert lines[0].startswith("warning: slides are read by different readers")
    assert "(tiff: 3, openslide: 1)" in lines[0]
    assert lines[1] == (
        "warning: the scale of some slides is guessed or forced (slide_mpp_source metadata: 3, cohort_forced: 1)"
    )
    assert lines[2:7] == [f"note: {note}" for note in ("n0", "m0", "n1", "m1", "n2")]
    assert lines[7].startswith("note: 1 more such lines")
    assert len(lines) == 8
