"""The direct TIFF reader: OpenSlide's pixels, chosen by content, bounded memory, honest about what it cannot read."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

import mhim.slides.choose as choose
from mhim.errors import ConfigError, SlideError
from mhim.slides import open_slide
from mhim.slides.scale import FileScale, resolve_scale
from mhim.slides.supply import SeamStore
from slide_files import stained, write_tiff
from tiff_files import write_jpeg, write_ome

PIXELS = stained(500, 380, (40, 30, 460, 350))
CORNERS = np.array([[0, 0], [64, 64], [37, 11], [-20, 300], [101, 60], [180, 60], [470, 350], [900, 900]])


@pytest.fixture(params=["ycc", "rgb", "generic", "deflate"])
def path(request, tmp_path):
    """JPEG with subsampled chroma, Aperio's RGB without a marker, generic TIFF, lossless."""
    if request.param == "deflate":
        return write_tiff(tmp_path / "a.tif", PIXELS, 0.25, levels=2)
    colours, is_aperio = ("rgb" if request.param == "rgb" else "ycc"), request.param != "generic"
    return write_jpeg(tmp_path / "a.svs", PIXELS, 0.25, levels=2, colours=colours, is_aperio=is_aperio)


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.3])
def test_equal_to_openslide(path, mpp):
    """On and off the lattice of stored tiles, over the edge, outside."""
    out, theirs = (np.empty((len(CORNERS), 64, 64, 3), np.uint8) for _ in range(2))
    with open_slide(path) as slide, open_slide(path, reader="openslide") as reference:
        assert (slide.reader, reference.reader) == ("tiff", "openslide")
        centre = slide.read((100, 100), (64, 64), 0.25)
        assert np.abs(centre.mean(axis=(0, 1)) - PIXELS[100:164, 100:164].mean(axis=(0, 1))).max() < 3
        assert "simplejpeg" in slide.reader_version
        assert slide.size_px0 == reference.size_px0
        even = CORNERS - CORNERS % 2 if mpp == 0.5 else CORNERS
        slide.read_many(even, 64, mpp, out)
        reference.read_many(even, 64, mpp, theirs)
    np.testing.assert_array_equal(out, theirs)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("stray", [None, (3, 0), (100_000, 0), (-1, 0)])
def test_whole_stored_tiles(path, level, stray):
    """In any order and repeated, on both levels, alone and beside one that is no stored tile: OpenSlide's pixels."""
    with open_slide(path) as slide, open_slide(path, reader="openslide") as reference:
        side = slide.levels[level].tile_px[0]
        step, mpp = side * 2**level, slide.mpp0 * 2**level
        corners = np.array([(1, 2), (0, 0), (1, 0), (1, 2)]) * step
        if stray is not None:
            corners = np.concatenate([corners[:2], np.multiply([stray], 2**level), corners[2:]])
        out, theirs = (np.empty((len(corners), side, side, 3), np.uint8) for _ in range(2))
        slide.read_many(corners, side, mpp, out)
        reference.read_many(corners, side, mpp, theirs)
    np.testing.assert_array_equal(out, theirs)
    assert len(np.unique(out.reshape(len(out), -1), axis=0)) == len(np.unique(corners, axis=0))


def test_each_stored_tile_is_decoded_once(path, monkeypatch):
    """Over a raster of tiles off the lattice, in several calls; threads get the same pixels."""
    corners = np.stack(np.meshgrid(np.arange(10, 400, 48), np.arange(7, 300, 48)), axis=-1).reshape(-1, 2)
    out, together = (np.empty((len(corners), 48, 48, 3), np.uint8) for _ in range(2))
    with open_slide(path) as slide:
        decoded = []
        plain = slide._decode
        monkeypatch.setattr(slide, "_decode", lambda key, into: (decoded.append(key), plain(key, into))[1])
        for start in range(0, len(corners), 10):
            slide.read_many(corners[start : start + 10], 48, 0.25, out[start : start + 10])
        assert len(decoded) == len(set(decoded)) > 20
        with ThreadPoolExecutor(4) as pool:
            parts = [slice(start, start + 5) for start in range(0, len(corners), 5)]
            list(pool.map(lambda part: slide.read_many(corners[part], 48, 0.25, together[part]), parts))
    np.testing.assert_array_equal(together, out)


def test_fast_mode_is_close_and_its_own(path):
    """Half-size decoding differs from the exact way by little, and not in place."""
    out, fast = (np.empty((1, 96, 96, 3), np.uint8) for _ in range(2))
    corner = np.array([[100, 100]])
    with open_slide(path) as slide:
        slide.read_many(corner, 96, 0.5, out, "parity")
        slide.read_many(corner, 96, 0.5, fast, "fast")
    assert np.abs(out.astype(float) - fast).mean() < 4


def test_seams_stay_within_their_budget():
    """Full of live rows it takes in nothing more; rows that have been passed make room."""
    tile = np.zeros((10, 10, 3), np.uint8)
    store = SeamStore(capacity=3 * tile.nbytes)
    for column in range(5):
        store.keep((0, 1, 0, column), tile, 50, row_span=2)
    assert store.held == 3 * tile.nbytes
    assert store.take((0, 1, 0, 4), 10) is None
    store.keep((0, 1, 9, 0), tile, 50, row_span=2)
    assert (store.held, store.take((0, 1, 0, 0), 10)) == (tile.nbytes, None)
    assert store.take((0, 1, 9, 0), 50) is tile
    assert store.held == 0


def test_wrong_pixels_fall_back_and_say_so(tmp_path, monkeypatch):
    """A reader that does not give OpenSlide's pixels is not used."""
    path = write_jpeg(tmp_path / "a.svs", PIXELS, 0.25)
    monkeypatch.setattr(choose, "find_difference", lambda *_: "tile 3 of level 0 differs by 7 of 255")
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.notes == (f"{path}: read by OpenSlide, not directly: tile 3 of level 0 differs by 7 of 255",)


def test_verification_sees_wrong_colours(tmp_path, monkeypatch):
    """RGB tiles decoded as YCbCr are found out on the file itself."""
    import mhim.slides.codecs as codecs

    path = write_jpeg(tmp_path / "a.svs", PIXELS, 0.25, colours="rgb")
    monkeypatch.setattr(codecs, "_head", lambda tables, is_rgb: b"")
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert "differs by" in slide.notes[0]


def test_levels_in_subifds(tmp_path):
    """All levels of an OME-TIFF are seen, its pixel size is read, and a coarse read does not touch level 0."""
    path = write_ome(tmp_path / "a.ome.tif", PIXELS, 0.25)
    with open_slide(path) as slide:
        assert slide.reader == "tiff"
        assert slide.downsamples == (1.0, 2.0, 4.0)
        assert (slide.mpp0, slide.mpp0_source) == (0.25, "metadata")
        assert slide.source_scale(1.0, "parity") == 1.0


def test_damaged_and_cut_files(tmp_path):
    """A damaged tile names file and place, its neighbours still read; a file cut short does not open."""
    path = write_jpeg(tmp_path / "a.svs", PIXELS, 0.25)
    with open_slide(path) as slide:
        spot = int(slide.levels[0].offsets[9])
        length = int(slide.levels[0].counts[9])
    data = bytearray(path.read_bytes())
    data[spot : spot + length] = bytes(length)
    path.write_bytes(bytes(data))
    with open_slide(path, reader="tiff") as slide:
        with pytest.raises(SlideError, match=r"a.svs: cannot read the stored tile at x 64, y 64 \(level 0\)"):
            slide.read((70, 70), (32, 32), 0.25)
        assert slide.read((200, 200), (32, 32), 0.25).mean() < 240
    path.write_bytes(bytes(data[: len(data) // 3]))
    with pytest.raises(SlideError, match=r"a.svs"):
        open_slide(path)


def test_survives_pickling(path):
    """A pickled slide opens its file again."""
    with open_slide(path) as slide, pickle.loads(pickle.dumps(slide)) as copy:
        np.testing.assert_array_equal(copy.read((3, 5), (40, 40), 0.5), slide.read((3, 5), (40, 40), 0.5))


def test_pictures_are_known_by_content(tmp_path):
    """PNG and JPEG under any name; without an mpp the usual line."""
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS[..., ::-1])
    odd = (tmp_path / "a.png").rename(tmp_path / "a.svs")
    with open_slide(odd, mpp0=0.5) as slide:
        assert (slide.reader, slide.mpp0_source, slide.size_px0) == ("image", "option", (500, 380))
        np.testing.assert_array_equal(slide.read((0, 0), (500, 380), 0.5), PIXELS)
    with pytest.raises(SlideError, match="no mpp in its metadata; give --mpp"):
        open_slide(odd)
    with pytest.raises(ConfigError, match="unknown reader 'vips'; known: auto, openslide, tiff, image"):
        open_slide(odd, mpp0=0.5, reader="vips")


FILE = FileScale((0.25, 0.25), (0.4, 0.4), 40)


@pytest.mark.parametrize(
    ("found", "given", "source", "force", "expected"),
    [
        (FILE, None, "option", False, (0.25, "metadata")),
        (FileScale(None, (0.4, 0.4), 40), None, "option", False, (0.4, "tiff_resolution")),
        (FileScale(None, (352.8, 352.8), 40), None, "option", False, (0.25, "objective_power")),
        (FileScale(None, None, 40), 0.26, "option", False, (0.26, "option")),
        (FileScale(), 0.26, "cohort", False, (0.26, "cohort")),
        (FILE, 0.5, "option", False, (0.25, "metadata")),
        (FILE, 0.5, "option", True, (0.5, "option_forced")),
        (FILE, 0.26, "cohort", False, (0.26, "cohort")),
        (FILE, 0.5, "cohort", True, (0.5, "cohort_forced")),
        (FILE, 0.5, "cohort_forced", False, (0.5, "cohort_forced")),
        (FILE, 0.3, "metadata", True, (0.25, "metadata")),
        (FileScale(None, (0.4, 0.4)), 0.5, "cohort", False, (0.5, "cohort")),
    ],
)
def test_the_chain_of_scales(tmp_path, found, given, source, force, expected):
    """Each link where the ones before it say nothing; a slide's own value first; force last says."""
    scale = resolve_scale(tmp_path / "a.svs", found, given, source, force)
    assert (scale.mpp, scale.source) == expected


@pytest.mark.parametrize("given", [float("nan"), -1.0, 0.0, float("inf")])
def test_scales_that_are_none(tmp_path, given):
    """A given mpp must be a positive number, and must not contradict the metadata unseen."""
    with pytest.raises(SlideError, match="expected a positive number"):
        resolve_scale(tmp_path / "a.svs", FILE, given)
    with pytest.raises(SlideError, match=r"mpp 0.5 is given, 0.25 is in its metadata; .*--force-scale"):
        resolve_scale(tmp_path / "a.svs", FILE, 0.5, "cohort")
