"""Tissue: closed forms of coverage, exact masks on drawn slides, real thumbnails."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mhim.errors import SlideError
from mhim.slides.array import ArraySlide
from mhim.tissue import TissueConfig, TissueMask, coverage, segment_tissue
from mhim.tissue.stain import _smooth
from slide_files import stained

MPP = 8.0


def slide_of(pixels):
    return ArraySlide(pixels, MPP, "drawn")


def test_coverage_by_hand():
    """Boxes on, beside, across and beyond a 2 x 3 mask with cells of 10 px."""
    cells = np.array([[1, 0, 1], [0, 1, 1]], dtype=bool)
    boxes = [
        (0, 0, 10, 10),
        (10, 0, 20, 10),
        (0, 0, 30, 20),
        (5, 0, 15, 10),
        (5, 5, 15, 15),
        (20, 0, 40, 20),
        (-30, 0, -10, 10),
        (25, 15, 25, 20),
    ]
    expected = [1, 0, 4 / 6, 0.5, 0.5, 0.5, 0, 0]
    np.testing.assert_allclose(coverage(cells, (10.0, 10.0), np.array(boxes)), expected)


@given(
    cells=arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    box=st.tuples(*[st.integers(0, 23)] * 2, *[st.integers(1, 24)] * 2),
)
def test_coverage_equals_counting(cells, box):
    """On whole pixels the integral image counts exactly what painting the mask at level 0 counts."""
    left, top, width, height = box
    painted = np.kron(cells, np.ones((4, 4)))
    canvas = np.zeros((64, 64))
    canvas[: painted.shape[0], : painted.shape[1]] = painted
    expected = canvas[top : top + height, left : left + width].mean()
    found = coverage(cells, (4.0, 4.0), np.array([[left, top, left + width, top + height]]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_coverage_is_additive():
    """Halves of a box average to the box, for boxes that cut cells anywhere."""
    rng = np.random.default_rng(0)
    cells = rng.random((20, 30)) > 0.5
    left, top = rng.uniform(0, 100, 50), rng.uniform(0, 60, 50)
    middle = left + rng.uniform(1, 40, 50)
    first, second = (
        np.stack([left, top, middle, top + 25], 1),
        np.stack([middle, top, 2 * middle - left, top + 25], 1),
    )
    both = np.stack([left, top, 2 * middle - left, top + 25], 1)
    size = (3.7, 3.7)
    np.testing.assert_allclose(
        coverage(cells, size, both), (coverage(cells, size, first) + coverage(cells, size, second)) / 2, atol=1e-12
    )


def test_finds_the_drawn_rectangle():
    """The mask is the rectangle to within a cell; noise and the background are not tissue."""
    mask = segment_tissue(slide_of(stained(200, 150, (40, 30, 160, 110))))
    assert mask.cells.shape == (150, 200)
    assert mask.cells[33:107, 43:157].all()
    outside = mask.cells.copy()
    outside[28:112, 38:162] = False
    assert not outside.any()
    assert mask.um_per_cell == MPP
    assert mask.px0_per_cell == (1.0, 1.0)


@pytest.mark.parametrize("mpp0", [0.25, 0.5, 2.0])
def test_same_tissue_at_any_level_zero_scale(mpp0):
    """A slide scanned finer has the same tissue in micrometres."""
    scale = int(MPP / mpp0)
    coarse = stained(60, 40, (15, 10, 45, 30))
    fine = np.kron(coarse, np.ones((scale, scale, 1), dtype=np.uint8))
    config = TissueConfig(mpp=MPP, min_tissue_um2=1000)
    mask = segment_tissue(ArraySlide(fine, mpp0), config)
    assert mask.cells.shape == (40, 60)
    assert mask.px0_per_cell == (scale, scale)
    assert mask.fraction == pytest.approx(30 * 20 / 2400, rel=0.1)


def test_dust_goes_and_small_holes_are_filled():
    """Coloured specks and holes below the area limits vanish, larger ones stay."""
    pixels = stained(200, 200, (20, 20, 150, 150))
    white = np.array([241, 241, 241], dtype=np.uint8)
    pixels[60:70, 60:70] = white
    pixels[90:130, 90:130] = white
    pixels[170:178, 170:178] = (120, 40, 160)
    mask = segment_tissue(slide_of(pixels), TissueConfig(close_um=0))
    assert mask.cells[60:70, 60:70].all()
    assert not mask.cells[95:125, 95:125].any()
    assert not mask.cells[160:, 160:].any()


def test_grey_dust_is_not_tissue():
    """Dark but colourless marks (dust, air bubbles, coverslip edges) are not tissue, however large."""
    pixels = stained(200, 200, (20, 20, 90, 90))
    pixels[120:180, 20:180] = 90
    assert not segment_tissue(slide_of(pixels)).cells[115:, :].any()


def test_tinted_background_is_not_tissue():
    """A yellowish lamp tints everything; the background is white-balanced by itself."""
    tint = np.array([1.0, 0.97, 0.86])
    pixels = (stained(200, 150, (40, 30, 160, 110)) * tint).astype(np.uint8)
    mask = segment_tissue(slide_of(pixels))
    assert mask.fraction == pytest.approx(120 * 80 / 30_000, rel=0.05)


def test_a_blank_slide_has_no_tissue():
    """Sensor noise alone stays below the floor of the threshold."""
    assert not segment_tissue(slide_of(stained(200, 150, (0, 0, 1, 1)))).cells.any()


def test_tissue_that_touches_the_edge_does_not_swallow_the_corner():
    """Background cut off by the edge of the slide is not a hole."""
    pixels = stained(200, 200, (0, 0, 200, 200))
    pixels[190:, 190:] = 241
    assert not segment_tissue(slide_of(pixels)).cells[196:, 196:].any()


def test_fluorescence_is_refused():
    """A dark background is one line that says why."""
    pixels = np.full((100, 100, 3), 8, dtype=np.uint8)
    pixels[40:60, 40:60, 2] = 250
    with pytest.raises(SlideError, match=r"drawn: dark background, looks like fluorescence; only bright-field"):
        segment_tissue(slide_of(pixels))


def test_black_padding_is_not_fluorescence():
    """A bright-field slide with unscanned black parts is read; the black is not tissue."""
    pixels = stained(200, 200, (20, 20, 90, 90))
    pixels[:, 95:] = 0
    mask = segment_tissue(slide_of(pixels))
    assert mask.cells[25:85, 25:85].all()
    assert not mask.cells[:, 100:].any()


def test_very_large_slides_use_coarser_cells():
    """The mask never exceeds its longest side."""
    mask = segment_tissue(slide_of(stained(400, 100, (50, 20, 350, 80))), TissueConfig(max_side_px=100))
    assert mask.cells.shape == (25, 100)
    assert mask.um_per_cell == pytest.approx(32.0)


def test_identity_follows_the_cells():
    """Equal masks share an identity; one cell changes it."""
    cells = np.zeros((4, 4), dtype=bool)
    same, other = TissueMask(cells, (8.0, 8.0), 8.0), TissueMask(cells ^ np.eye(4, dtype=bool), (8.0, 8.0), 8.0)
    assert same.identity == TissueMask(cells.copy(), (8.0, 8.0), 8.0).identity
    assert same.identity != other.identity


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("histoprep_slide.jpeg", 0.72, 0.86),
        ("histoprep_tma_spots.jpeg", 0.06, 0.10),
        ("histoqc_coverslip_edge.png", 0.48, 0.58),
        ("histoqc_template1.png", 0.97, 1.0),
    ],
)
def test_real_thumbnails(shared, name, low, high):
    """Fractions on real pictures whose outlines were looked at."""
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / name).convert("RGB").reduce(2))
    assert low <= segment_tissue(ArraySlide(pixels, 16.0)).fraction <= high


def test_coverslip_edge_is_left_out(shared):
    """The black coverslip edge and the glass beyond it are not tissue (columns 60 to 100, upper part)."""
    pixels = np.array(Image.open(shared / "data" / "tissue_thumbnails" / "histoqc_coverslip_edge.png").convert("RGB"))
    mask = segment_tissue(ArraySlide(pixels, MPP))
    assert mask.cells[:280, :150].mean() < 0.01


@given(
    seed=st.integers(0, 99), height=st.integers(3, 200), width=st.integers(3, 90), side_um=st.sampled_from([0, 40, 80])
)
def test_strips_change_nothing(seed, height, width, side_um):
    """The median filter works in strips of rows; what comes out is the filter of the whole picture."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = cv2.medianBlur(rgb, {0: 1, 40: 5, 80: 11}[side_um])
    assert np.array_equal(np.stack(_smooth(rgb, 8.0, side_um), axis=2), whole)
