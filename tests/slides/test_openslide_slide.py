"""Slide files: scale laws on a written pyramid, where mpp comes from, what an unreadable file says."""

import pickle
import sys

import numpy as np
import openslide
import pytest

import mhim.slides.base as reader
from mhim.errors import ConfigError, SlideError
from mhim.slides import open_slide
from slide_files import checkerboard, stained, write_tiff


@pytest.fixture
def board(tmp_path):
    """A checkerboard of 64 px squares at 0.25 um, three levels."""
    return write_tiff(tmp_path / "board.tif", checkerboard(512, 384, 64), 0.25, levels=3)


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.5, 0.8, 1.0, 1.6])
def test_squares_keep_their_size_in_micrometres(board, mpp):
    """At any mpp each square spans 16 um: its centre has its colour, and black and white are in balance."""
    with open_slide(board) as slide:
        size_px = (round(128 / mpp), round(96 / mpp))
        region = slide.read((0, 0), size_px, mpp)
    um = (np.arange(6) + 0.5) * 16
    rows, columns = (um[:6] / mpp).astype(int), (np.append(um, [104, 120]) / mpp).astype(int)
    expected = (np.add.outer(np.arange(6), np.arange(8)) % 2) * 255
    np.testing.assert_array_equal(region[np.ix_(rows, columns)][..., 0], expected)
    assert region.mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("corner", [(0, 0), (64, 64), (128, 0)])
def test_tile_at_level_zero_is_exact(board, corner):
    """At mpp0 the file's own pixels come back."""
    with open_slide(board) as slide:
        region = slide.read(corner, (96, 96), 0.25)
    x, y = corner
    np.testing.assert_array_equal(region, checkerboard(512, 384, 64)[y : y + 96, x : x + 96])


def test_pyramid_and_level_zero_agree(tmp_path):
    """Reading through a coarser level or from level 0 alone gives the same picture to within rounding."""
    pixels = stained(512, 512, (100, 100, 400, 400))
    paths = [write_tiff(tmp_path / f"{levels}.tif", pixels, 0.5, levels=levels) for levels in (1, 3)]
    flat, pyramid = (open_slide(path).read((64, 64), (96, 96), 1.5).astype(float) for path in paths)
    assert np.abs(flat - pyramid).mean() < 2


def test_parts_of_a_large_region_join(board, monkeypatch):
    """A region above the read limit is read in parts; the picture is the same but for seams."""
    with open_slide(board) as slide:
        whole = slide.read((0, 0), (512, 384), 0.25)
        monkeypatch.setattr(reader, "MAX_READ_PX", 10_000)
        np.testing.assert_array_equal(slide.read((0, 0), (512, 384), 0.25), whole)


def test_outside_is_white(board):
    """Beyond the edge there are no invented pixels, only white."""
    with open_slide(board) as slide:
        assert (slide.read((512, 0), (32, 32), 0.25) == 255).all()
        assert (slide.read((-64, -64), (64, 64), 0.25) == 255).all()


def test_metadata_wins_over_a_given_mpp(board):
    """An mpp for the whole run is a fallback; what was used and where it came from is recorded."""
    with open_slide(board, mpp0=0.9) as slide:
        assert slide.mpp0 == pytest.approx(0.25, rel=1e-4)
        assert slide.mpp0_source == "tiff_resolution"


def test_missing_mpp(tmp_path):
    """Without mpp anywhere the error names the fix; a given one is used and its source kept."""
    path = write_tiff(tmp_path / "plain.tif", checkerboard(128, 128, 8), None)
    with pytest.raises(SlideError, match=r"plain.tif: no mpp in its metadata; give --mpp or fill the column 'mpp'"):
        open_slide(path)
    with open_slide(path, mpp0=0.4, mpp0_source="cohort") as slide:
        assert (slide.mpp0, slide.mpp0_source) == (0.4, "cohort")


def test_pixels_that_are_not_square(tmp_path, monkeypatch):
    """More than 1 % between x and y is refused, less is averaged."""
    path = write_tiff(tmp_path / "a.tif", checkerboard(128, 128, 8), 0.5)
    real = openslide.OpenSlide

    def stretched(y):
        class Stretched(real):
            @property
            def properties(self):
                return {openslide.PROPERTY_NAME_MPP_X: "0.5", openslide.PROPERTY_NAME_MPP_Y: y}

        return Stretched

    monkeypatch.setattr(openslide, "OpenSlide", stretched("0.52"))
    with pytest.raises(SlideError, match=r"not square \(mpp x 0.5, y 0.52\)"):
        open_slide(path)
    monkeypatch.setattr(openslide, "OpenSlide", stretched("0.502"))
    assert open_slide(path).mpp0 == pytest.approx(0.501)


def test_missing_and_foreign_files(tmp_path):
    """One line that names the file."""
    with pytest.raises(SlideError, match="gone.svs: no such slide file"):
        open_slide(tmp_path / "gone.svs")
    (tmp_path / "text.svs").write_text("not a slide")
    with pytest.raises(SlideError, match=r"text.svs: not a slide format that OpenSlide reads"):
        open_slide(tmp_path / "text.svs")
    with pytest.raises(SlideError, match=r"without .dcm files"):
        open_slide(tmp_path)


def test_a_tile_that_cannot_be_read_is_an_error_not_white(tmp_path):
    """Damaged pixels name file and place, after one attempt on a fresh handle; other tiles still read."""
    path = write_tiff(tmp_path / "damaged.tif", stained(512, 512, (0, 0, 512, 512)), 0.5)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60_000] = bytes(60_000)
    path.write_bytes(bytes(data))
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match=r"damaged.tif: cannot read the region at x 0, y 0 \(level 0\)"):
            slide.read((0, 0), (512, 512), 0.5)
        assert slide.read((0, 0), (64, 64), 0.5).mean() < 240


def test_survives_pickling(board):
    """A pickled slide opens its file again."""
    with open_slide(board, "name") as slide, pickle.loads(pickle.dumps(slide)) as copy:
        assert copy.slide_id == "name"
        np.testing.assert_array_equal(copy.read((3, 5), (40, 40), 0.5), slide.read((3, 5), (40, 40), 0.5))


def test_dicom_folder_is_one_slide(shared):
    """A folder of DICOM instances reads like the SVS file that it was made from."""
    folder = shared / "data" / "wsi_samples" / "CMU-1-Small-Region-dicom"
    with open_slide(folder) as dicom, open_slide(folder.parent / "CMU-1-Small-Region.svs") as svs:
        assert dicom.slide_id == "CMU-1-Small-Region-dicom"
        assert dicom.size_px0 == svs.size_px0
        ours, theirs = (slide.read((900, 900), (128, 128), 1.0, "parity").astype(int) for slide in (svs, dicom))
        assert np.abs(ours - theirs).mean() < 5


def test_openslide_not_installed(board, monkeypatch):
    """Without the extra the error is one line with the command that installs it."""
    monkeypatch.setitem(sys.modules, "mhim.slides.choose", None)
    monkeypatch.delattr("mhim.slides.choose", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'mhim\[slides\]'"):
        open_slide(board)
