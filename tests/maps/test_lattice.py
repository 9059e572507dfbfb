"""Geometry of the lattice: where a value lies on the slide."""

from __future__ import annotations

import numpy as np
import pytest

from mhim.errors import FeatureError
from mhim.maps.lattice import Lattice, grid_step, tile_size_or_step


def grid(offset: tuple[float, float], step: float, columns: int, rows: int) -> np.ndarray:
    x, y = np.meshgrid(offset[0] + step * np.arange(columns), offset[1] + step * np.arange(rows))
    return np.rint(np.stack([x.ravel(), y.ravel()], axis=1)).astype(np.int64)


def found_box(lattice: Lattice, marked: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom in level-0 pixels of the cells that a marked tile set covers."""
    rows, columns = np.nonzero(np.nan_to_num(lattice.raster(marked)) > 0)
    low = np.array([columns.min(), rows.min()]) * lattice.cell_px0 + lattice.origin_px0
    high = np.array([columns.max() + 1, rows.max() + 1]) * lattice.cell_px0 + lattice.origin_px0
    return np.concatenate([low, high])


@pytest.mark.parametrize("offset", [(0.0, 0.0), (1337.0, 251.0)])
@pytest.mark.parametrize(
    ("tile", "step"),
    [(512.0, 512.0), (512.4, 512.4), (224.0, 112.0), (256.0, 192.0), (99.7, 99.7), (300.0, 450.0), (256.3, 201.1)],
    ids=["plain", "odd mpp", "half overlap", "quarter overlap", "odd small", "gaps", "odd overlap"],
)
def test_a_known_square_maps_back_within_one_cell(offset, tile, step):
    """Every tile edge is at its true place to within one lattice cell."""
    xy = grid(offset, step, 60, 40)
    lattice = Lattice.of_tiles(xy, tile)
    for index in (0, 777, len(xy) - 1):
        marked = np.zeros(len(xy))
        marked[index] = 1
        truth = np.concatenate([xy[index], xy[index] + tile])
        assert np.abs(found_box(lattice, marked) - truth).max() <= lattice.cell_px0


@pytest.mark.parametrize("tile", [512.0, 512.4, 99.7])
def test_tiles_side_by_side_take_one_cell_each(tile):
    """Rounded corners of a fractional tile size neither split nor merge cells."""
    xy = grid((17, 5), tile, 200, 100)
    lattice = Lattice.of_tiles(xy, tile)
    assert lattice.shape == (100, 200)
    values = np.random.default_rng(0).normal(size=len(xy))
    np.testing.assert_allclose(lattice.raster(values), values.reshape(100, 200), atol=1e-9)


def test_overlap_is_averaged():
    """Two tiles that share half their width: own value on the own half, mean where they meet."""
    lattice = Lattice.of_tiles(np.array([[0, 0], [50, 0]]), 100.0)
    raster = lattice.raster(np.array([1.0, 3.0]))
    seen = lattice.sample(raster, (150, 1), (1.0, 1.0))[0]
    np.testing.assert_allclose(seen[[10, 60, 120]], [1, 2, 3])


def test_cells_without_a_tile_are_nan():
    xy = np.array([[0, 0], [100, 0], [0, 100]])
    raster = Lattice.of_tiles(xy, 100.0).raster(np.ones(3))
    assert np.isnan(raster[1, 1])
    assert np.isfinite(raster).sum() == 3


def test_several_shifted_grids_keep_their_places():
    """Regions tiled each from its own corner (CLAM) share one raster."""
    xy = np.concatenate([grid((0, 0), 256, 10, 10), grid((5003, 77), 256, 10, 10)])
    lattice = Lattice.of_tiles(xy, 256.0)
    assert lattice.cell_px0 <= 256 / 4
    marked = np.zeros(len(xy))
    marked[100] = 1
    assert np.abs(found_box(lattice, marked) - [5003, 77, 5259, 333]).max() <= lattice.cell_px0


def test_a_picture_sees_the_tile_under_each_pixel():
    """Sampling at any scale and corner puts the tile's pixels inside the tile's box."""
    xy = grid((1000, 400), 256, 12, 9)
    lattice = Lattice.of_tiles(xy, 256.0)
    marked = np.zeros(len(xy))
    marked[3 * 12 + 5] = 1
    seen = lattice.sample(lattice.raster(marked), (500, 300), (9.7, 9.7), corner_px0=(300.0, 100.0))
    assert seen.shape == (300, 500)
    rows, columns = np.nonzero(np.nan_to_num(seen) > 0)
    x, y = 300 + (columns + 0.5) * 9.7, 100 + (rows + 0.5) * 9.7
    left, top = xy[3 * 12 + 5]
    assert left <= x.min() < left + 9.7
    assert left + 256 - 9.7 <= x.max() <= left + 256
    assert top <= y.min() < top + 9.7
    assert top + 256 - 9.7 <= y.max() <= top + 256


def test_sampling_outside_is_nan():
    lattice = Lattice.of_tiles(np.array([[0, 0]]), 10.0)
    seen = lattice.sample(lattice.raster(np.ones(1)), (4, 1), (10.0, 10.0), corner_px0=(-20.0, 0.0))
    np.testing.assert_array_equal(np.isnan(seen[0]), [True, True, False, True])


@pytest.mark.parametrize("step", [512, 300, 50])
def test_step_is_read_from_sparse_tiles(step):
    xy = grid((351, 1251), step, 40, 30)
    keep = np.random.default_rng(1).random(len(xy)) < 0.3
    assert grid_step(xy[keep]) == pytest.approx(step)


def test_tile_size_falls_back_to_the_spacing_and_says_so():
    size, notice = tile_size_or_step(grid((0, 0), 224, 4, 4), None, "a.h5")
    assert size == 224
    assert notice is not None
    assert "224" in notice
    assert tile_size_or_step(grid((0, 0), 224, 4, 4), 256.0, "a.h5") == (256.0, None)


def test_a_lone_tile_without_size_is_an_error():
    with pytest.raises(FeatureError, match=r"a\.h5.*tile_size_level0"):
        tile_size_or_step(np.array([[0, 0]]), None, "a.h5")


def test_memory_is_bounded_for_unaligned_tiles():
    """Random positions over a huge slide do not blow the raster up."""
    xy = np.random.default_rng(0).integers(0, 200_000, size=(2000, 2))
    lattice = Lattice.of_tiles(xy, 256.0)
    assert lattice.shape[0] * lattice.shape[1] <= 1.1 * (1 << 24)
    assert np.nanmax(lattice.raster(np.ones(2000))) == pytest.approx(1)
