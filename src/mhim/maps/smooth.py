"""Maps without steps: values between tile centres by bilinear weights, never beyond the tiles.

Every tile carries a tent of weight that falls from 1 at its centre to 0 one step of the grid away, along both axes; a
pixel has the weighted mean of the tiles whose tents reach it. On one grid, with or without overlap, that is bilinear
interpolation: a tile's centre keeps the tile's own value. Around holes and edges the mean is over the tiles that are
there (normalised convolution; Knutsson and Westin, CVPR 1993), so a constant stays constant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mhim.maps.lattice import Lattice, Raster


def smooth_picture(
    lattice: Lattice,
    values: NDArray[np.floating],
    size_px: tuple[int, int],
    px0_per_px: tuple[float, float],
    corner_px0: tuple[float, float] = (0.0, 0.0),
) -> Raster:
    """(h, w) float64: tile values interpolated at the centres of a picture's pixels, NaN where there is no tile.

    A pixel on a tile that no tent reaches (tiles that overlap by more than half, at the edge) has the blocky value.
    Several shifted grids on one slide are blended where they overlap.

    Args:
        lattice: where the tiles lie.
        values: (N,) one value a tile, finite.
        size_px: (w, h) of the picture.
        px0_per_px: (x, y) level-0 pixels a picture pixel.
        corner_px0: (x, y) of the picture's corner in level-0 pixels.
    """
    blocky = lattice.sample(lattice.raster(values), size_px, px0_per_px, corner_px0)
    across, down = (
        _tents(lattice, axis, size_px[axis], px0_per_px[axis], corner_px0[axis]) for axis in (0, 1)
    )  # (w, N) and (h, N)
    weight = (down @ across.T).toarray()
    total = (down.multiply(np.asarray(values, dtype=np.float64)) @ across.T).toarray()
    smooth = np.divide(total, weight, out=blocky.copy(), where=weight > 0)
    return np.where(np.isnan(blocky), np.nan, smooth)


def _tents(lattice: Lattice, axis: int, length_px: int, px0_per_px: float, corner_px0: float) -> csr_matrix:
    """(length_px, N) weight of each tile at each pixel centre along one axis (0 is x)."""
    reach_px = lattice.step_cells * lattice.cell_px0 / px0_per_px
    middle = (lattice.boxes[:, axis] + lattice.boxes[:, axis + 2]) / 2
    centre_px = (lattice.origin_px0[axis] + middle * lattice.cell_px0 - corner_px0) / px0_per_px - 0.5
    first = np.ceil(centre_px - reach_px).astype(np.int64)
    pixels = first[:, None] + np.arange(int(np.ceil(2 * reach_px)) + 1)
    weights = 1 - np.abs(pixels - centre_px[:, None]) / reach_px
    used = (weights > 0) & (pixels >= 0) & (pixels < length_px)
    tiles = np.broadcast_to(np.arange(len(middle))[:, None], used.shape)
    shape = (length_px, len(middle))
    return csr_matrix((weights[used], (pixels[used], tiles[used])), shape=shape)
