"""Tiles: where they lie on a slide, decided by geometry alone, and the grid that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import SlideError
from mhim.tissue import TissueConfig, TissueMask

UPSAMPLE_TOLERANCE = 0.03
_BLOCK_ROWS = 256


class TileSpec(Settings):
    """Which tiles are wanted."""

    mpp: float = Field(default=0.5, gt=0, description="micrometres per pixel of the tiles that the encoder sees")
    size_px: int = Field(default=256, ge=8, description="side of a tile, pixels at mpp")
    stride_px: int | None = Field(
        default=None, ge=1, description="step between tiles, pixels at mpp; by default the side"
    )
    min_tissue: float = Field(default=0.25, ge=0, le=1, description="least share of a tile that is tissue")

    @property
    def step_px(self) -> int:
        """Step between tiles in pixels at ``mpp``."""
        return self.stride_px or self.size_px

    def size_px0(self, mpp0: float) -> float:
        """Side of a tile in level-0 pixels, in general not a whole number."""
        return self.size_px * self.mpp / mpp0


class TileConfig(Settings):
    """Everything that decides what ``mhim tile`` writes."""

    tiles: TileSpec = Field(default=TileSpec(), description="scale, size and step of the tiles")
    tissue: TissueConfig = Field(default=TissueConfig(), description="how tissue is found")


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one slide.

    Attributes:
        slide_id: the slide's name.
        xy_px0: (N, 2) int64, top-left corners in level-0 pixels, sorted by y, then x.
        tissue: the mask that chose them.
        attributes: what the file records, see ``mhim.bag.ATTRIBUTES``.
        annotation_fraction: (N,) float32 in [0, 1], share of each tile inside the annotation, or None.
        thumbnail: (h, w, 3) uint8 picture of the slide, or None.
    """

    slide_id: str
    xy_px0: NDArray[np.int64]
    tissue: TissueMask
    attributes: Mapping[str, Any] = field(default_factory=dict)
    annotation_fraction: NDArray[np.float32] | None = None
    thumbnail: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.xy_px0)


def plan_tiles(
    size_px0: tuple[int, int], mpp0: float, tissue: TissueMask, spec: TileSpec, name: str = "slide"
) -> NDArray[np.int64]:
    """Corners of the tiles that lie inside the slide and hold enough tissue.

    Corner i of an axis is the rounded i * step * mpp / mpp0, so neighbours meet to within one level-0
    pixel and no error builds up over the slide.

    Args:
        size_px0: slide (width, height) in level-0 pixels.
        mpp0: micrometres per level-0 pixel.
        tissue: where the tissue is.
        spec: which tiles are wanted.
        name: the slide's name in messages.

    Returns:
        (N, 2) int64, x and y of each corner in level-0 pixels, sorted by y, then x.

    Raises:
        SlideError: ``spec.mpp`` is finer than the slide, the slide is smaller than a tile, there is no
            tissue, or no tile holds enough of it.
    """
    refuse_upsampling(mpp0, spec, name)
    side_px0, step_px0 = spec.size_px0(mpp0), spec.step_px * spec.mpp / mpp0
    x, y = (_corners(length, side_px0, step_px0) for length in size_px0)
    if not len(x) or not len(y):
        raise SlideError(
            f"{name}: {size_px0[0]} x {size_px0[1]} px is smaller than one tile of {side_px0:.0f} px (level 0); "
            f"use a smaller --tile-px or --target-mpp"
        )
    if spec.min_tissue > 0 and not tissue.cells.any():
        raise SlideError(f"{name}: no tissue found; look at the slide, or set tissue.threshold lower")
    blocks = [
        _enough_tissue(x, y[start : start + _BLOCK_ROWS], side_px0, tissue, spec.min_tissue)
        for start in range(0, len(y), _BLOCK_ROWS)
    ]
    xy_px0 = np.concatenate(blocks)
    if not len(xy_px0):
        raise SlideError(f"{name}: no tile holds {spec.min_tissue:.0%} tissue; lower --min-tissue or --tile-px")
    return xy_px0


def refuse_upsampling(mpp0: float, spec: TileSpec, name: str) -> None:
    """Refuse tiles finer than the slide.

    Raises:
        SlideError: ``spec.mpp`` is more than 3 % finer than ``mpp0``.
    """
    if spec.mpp < mpp0 * (1 - UPSAMPLE_TOLERANCE):
        raise SlideError(
            f"{name}: target mpp {spec.mpp:g} is finer than the slide's {mpp0:.4g}; use --target-mpp >= {mpp0:.4g}"
        )


def tile_boxes(xy_px0: NDArray[np.int64], side_px0: float) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of square tiles in level-0 pixels."""
    corners = xy_px0.astype(np.float64)
    return np.hstack([corners, corners + side_px0])


def _corners(length_px0: int, side_px0: float, step_px0: float) -> NDArray[np.int64]:
    """Rounded corners along one axis whose tiles end inside the slide."""
    corners = np.rint(np.arange(int(length_px0 / step_px0) + 1) * step_px0).astype(np.int64)
    return corners[corners + side_px0 <= length_px0 + 1e-6]


def _enough_tissue(
    x: NDArray[np.int64], y: NDArray[np.int64], side_px0: float, tissue: TissueMask, least: float
) -> NDArray[np.int64]:
    rows, columns = np.meshgrid(y, x, indexing="ij")
    xy_px0 = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return xy_px0[tissue.coverage(tile_boxes(xy_px0, side_px0)) >= least - 1e-9]
