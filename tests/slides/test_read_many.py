"""Many tiles at once: the same pixels as one by one, for every reader and mode."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mhim.errors import SlideError
from mhim.slides import open_slide
from mhim.slides.array import ArraySlide
from slide_files import stained, write_tiff

PIXELS = stained(400, 300, (50, 40, 350, 280))
XY_PX0 = np.array([[0, 0], [37, 11], [-20, 250], [101, 60], [380, 290], [500, 500]])


@pytest.fixture(params=["array", "openslide"])
def slide(request, tmp_path):
    """The same pixels behind each reader."""
    if request.param == "array":
        yield ArraySlide(PIXELS, 0.25)
        return
    with open_slide(write_tiff(tmp_path / "slide.tif", PIXELS, 0.25)) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["parity", "fast"])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.61])
def test_equal_to_reading_one_by_one(slide, mpp, mode):
    """Also tiles that hang over the edge or lie outside."""
    out = np.empty((len(XY_PX0), 48, 48, 3), dtype=np.uint8)
    slide.read_many(XY_PX0, 48, mpp, out, mode)
    for tile, (x, y) in zip(out, XY_PX0.tolist(), strict=True):
        alone = slide.read((x, y), (48, 48), mpp, mode)
        assert np.abs(tile.astype(int) - alone).max() <= (2 if mpp > 0.25 else 0)
    assert (out[-1] == 255).all()


def test_threads_share_a_slide(slide):
    """Several threads that read at once get the pixels that one gets."""
    corners = np.stack(np.meshgrid(np.arange(0, 300, 25), np.arange(0, 200, 25)), axis=-1).reshape(-1, 2)
    alone = np.empty((len(corners), 32, 32, 3), dtype=np.uint8)
    slide.read_many(corners, 32, 0.5, alone)
    together = np.zeros_like(alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: slide.read_many(corners[i : i + 8], 32, 0.5, together[i : i + 8]), range(0, 96, 8)))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("corners", "out"),
    [
        (np.zeros((2, 3), int), np.zeros((2, 8, 8, 3), np.uint8)),
        (np.zeros((2, 2)), np.zeros((2, 8, 8, 3), np.uint8)),
        (np.zeros((2, 2), int), np.zeros((3, 8, 8, 3), np.uint8)),
        (np.zeros((2, 2), int), np.zeros((2, 8, 8, 3), np.float32)),
    ],
)
def test_arguments_that_do_not_belong_together(slide, corners, out):
    """Shapes and dtypes are checked."""
    with pytest.raises(SlideError, match="expected"):
        slide.read_many(corners, 8, 0.5, out)
