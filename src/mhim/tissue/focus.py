"""Tissue out of focus: how much of its contrast is fine detail."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mhim.slides import Slide

STRIP_PX = 512
JUDGED_UM = 128.0
FINE_PX, COARSE_PX = 1.0, 4.0


def blurred_cells(
    slide: Slide, cells: NDArray[np.bool_], um_per_cell: float, mpp: float, min_sharpness: float
) -> NDArray[np.bool_]:
    """Tissue cells whose neighbourhood is out of focus, (rows, columns) bool.

    Sharpness is the mean difference between the picture and itself smoothed by 1 px, over the same with
    4 px, in squares of about 128 um: it does not depend on contrast or brightness. The slide is read in
    strips, so memory stays bounded.

    Args:
        slide: the slide.
        cells: (rows, columns) bool tissue.
        um_per_cell: side of a cell.
        mpp: scale at which focus is judged; at most ``um_per_cell``.
        min_sharpness: squares below it are blurred.
    """
    import cv2

    mpp = max(min(mpp, um_per_cell), slide.mpp0)
    fine, coarse = np.zeros(cells.shape), np.zeros(cells.shape)
    step = max(1, int(STRIP_PX * mpp / um_per_cell))
    rows, columns = cells.shape
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        if not cells[top:bottom].any():
            continue
        size_px = (math.ceil(columns * um_per_cell / mpp), math.ceil((bottom - top) * um_per_cell / mpp))
        rgb = slide.read((0, round(top * um_per_cell / slide.mpp0)), size_px, mpp)
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.float32)
        for sums, sigma in ((fine, FINE_PX), (coarse, COARSE_PX)):
            detail = np.abs(grey - np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma)))
            sums[top:bottom] = cv2.resize(detail, (columns, bottom - top), interpolation=cv2.INTER_AREA)
    side = 2 * int(JUDGED_UM / um_per_cell / 2) + 1
    fine, coarse = (np.asarray(cv2.blur(np.where(cells, sums, 0.0), (side, side))) for sums in (fine, coarse))
    return cells & (fine < min_sharpness * coarse)
