"""The in-memory slide: exact pixels, exact scale, white outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhim.errors import SlideError
from mhim.slides.array import ArraySlide
from mhim.slides.resample import best_level
from slide_files import checkerboard


def test_reads_its_own_pixels_at_its_own_scale():
    """At mpp0 a region is a plain slice."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    region = ArraySlide(pixels, 0.5).read((7, 11), (20, 13), 0.5)
    np.testing.assert_array_equal(region, pixels[11:24, 7:27])


def test_white_outside():
    """A region that hangs over every edge is white there and exact inside."""
    pixels = np.zeros((10, 10, 3), dtype=np.uint8)
    region = ArraySlide(pixels, 1.0).read((-3, -2), (20, 20), 1.0)
    inside = region[2:12, 3:13]
    assert (inside == 0).all()
    assert int((region == 0).sum()) == inside.size


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_mean_survives_any_reduction(factor):
    """A picture of two flat halves keeps both levels and the place of the edge at every scale."""
    pixels = np.full((60, 120, 3), 200, dtype=np.uint8)
    pixels[:, 60:] = 50
    small = ArraySlide(pixels, 0.25).read((0, 0), (120 // factor, 60 // factor), 0.25 * factor)
    edge = 60 // factor
    assert (small[:, : edge - 1] == 200).all()
    assert (small[:, edge + 1 :] == 50).all()


def test_region_moves_with_its_corner():
    """Reading at an offset of two squares of a checkerboard gives the same picture."""
    slide = ArraySlide(checkerboard(256, 256, 16), 0.5)
    np.testing.assert_array_equal(slide.read((0, 0), (64, 64), 0.9), slide.read((32, 0), (64, 64), 0.9))


@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(8, 200))
def test_thumbnail_bound(width, height, side):
    """The longer side never exceeds the bound, small slides are not enlarged, nothing is invented inside."""
    slide = ArraySlide(np.full((height, width, 3), 9, dtype=np.uint8), 1.0)
    picture = slide.thumbnail(side)
    assert max(picture.shape[:2]) == min(max(width, height), side)
    assert (picture[:-2, :-2] == 9).all()


def test_best_level_is_the_coarsest_fine_enough():
    """One per cent coarser is still taken; more is not."""
    levels = [0.25, 0.5, 1.0]
    assert [best_level(levels, mpp) for mpp in (0.2, 0.25, 0.49, 0.496, 0.99, 0.995, 8.0)] == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_refuses_other_arrays(pixels):
    """Only (h, w, 3) uint8 with pixels in it."""
    with pytest.raises(SlideError, match="expected uint8"):
        ArraySlide(pixels, 0.5)


def test_refuses_scale_zero():
    """An mpp must be positive."""
    with pytest.raises(SlideError, match="positive"):
        ArraySlide(np.zeros((4, 4, 3), np.uint8), 0.0)
