"""Tiles: where they lie on a slide, decided by geometry alone, and the grid that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import SlideError
from mhim.tissue import Outline, TissueConfig, TissueMask, lattice_coverage, place_in_ring

UPSAMPLE_TOLERANCE = 0.03
MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
LEAST_TISSUE = {"mpp": 0.25, "trident": 1e-6}


class TileSpec(Settings):
    """Which tiles are wanted."""

    mpp: float = Field(default=0.5, gt=0, description="micrometres per pixel of the tiles that the encoder sees")
    size_px: int = Field(default=256, ge=8, description="side of a tile, pixels at mpp")
    stride_px: int | None = Field(
        default=None, ge=1, description="step between tiles, pixels at mpp; by default the side"
    )
    min_tissue: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="least share of a tile that is tissue; by default 0.25, on TRIDENT's grid any; not used on CLAM's",
    )
    grid: Literal["auto", "mpp", "clam", "trident"] = Field(
        default="auto",
        description="mpp: one lattice at the exact scale; clam: CLAM's, from the corner of each outline; trident: "
        "one lattice, scale rounded to a magnification; auto: clam after clam: tissue with a level, else mpp",
    )
    level: int | None = Field(
        default=None, ge=0, description="CLAM's patch_level: tiles are pixels of this pyramid level, and mpp is its own"
    )

    @property
    def step_px(self) -> int:
        """Step between tiles in pixels at ``mpp``."""
        return self.stride_px or self.size_px

    def size_px0(self, mpp0: float) -> float:
        """Side of a tile in level-0 pixels at the exact scale, in general not a whole number."""
        return self.size_px * self.mpp / mpp0


@dataclass(frozen=True)
class TileScale:
    """What a specification means on one slide.

    Attributes:
        mpp: micrometres per pixel of the tiles, exact.
        side_px0: side of a tile in level-0 pixels.
        step_px0: step between tiles in level-0 pixels.
    """

    mpp: float
    side_px0: float
    step_px0: float


def tile_scale(spec: TileSpec, mpp0: float, downsamples: Sequence[float] = (1.0,), name: str = "slide") -> TileScale:
    """Side and step of the tiles on a slide.

    Exact by default. With ``level``, as CLAM: the side times the level's downsampling, fractions cut off.
    On TRIDENT's grid the scale is the ratio of two magnifications, each the nearest to 10 / mpp, so the
    true mpp differs from slide to slide; it is what the result says.

    Args:
        spec: which tiles are wanted.
        mpp0: micrometres per level-0 pixel.
        downsamples: of the slide's pyramid levels.
        name: the slide's name in messages.

    Raises:
        SlideError: the slide has no such level.
    """
    if spec.level is not None:
        if spec.level >= len(downsamples):
            raise SlideError(f"{name}: no pyramid level {spec.level} (it has {len(downsamples)}); use --patch-level 0")
        factor = int(downsamples[spec.level])
        return TileScale(mpp0 * factor, float(spec.size_px * factor), float(spec.step_px * factor))
    if spec.grid == "trident":
        factor = nearest_magnification(mpp0) / nearest_magnification(spec.mpp)
        side, step = round(spec.size_px * factor), round(spec.step_px * factor)
        return TileScale(mpp0 * side / spec.size_px, float(side), float(max(step, 1)))
    return TileScale(spec.mpp, spec.size_px0(mpp0), spec.step_px * spec.mpp / mpp0)


def nearest_magnification(mpp: float) -> float:
    """The usual objective power nearest to 10 / mpp, by ratio.

    >>> nearest_magnification(0.265), nearest_magnification(0.5)
    (40.0, 20.0)
    """
    return min(MAGNIFICATIONS, key=lambda power: abs(math.log(10.0 / mpp / power)))


class TileConfig(Settings):
    """Everything that decides what ``mhim tile`` writes."""

    tiles: TileSpec = Field(default=TileSpec(), description="scale, size and step of the tiles")
    tissue: TissueConfig = Field(default=TissueConfig(), description="how tissue is found")


def as_clam(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a :class:`TileConfig` as plain values, with CLAM's level 0 where only CLAM's tissue is named.

    Who names a preset of CLAM and no scale means CLAM's tiles: pixels of level 0.

    >>> as_clam({"tissue": {"method": "clam:tcga"}})["tiles"]
    {'level': 0}
    >>> as_clam({"tissue": {"method": "clam:tcga"}, "tiles": {"mpp": 0.5}})["tiles"]
    {'mpp': 0.5}
    """
    tissue, tiles = values.get("tissue") or {}, values.get("tiles") or {}
    is_clam = isinstance(tissue, Mapping) and str(tissue.get("method", "")).startswith("clam")
    if not is_clam or not isinstance(tiles, Mapping) or {"mpp", "level"} & tiles.keys():
        return dict(values)
    return {**values, "tiles": {**tiles, "level": 0}}


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
    size_px0: tuple[int, int],
    mpp0: float,
    tissue: TissueMask,
    spec: TileSpec,
    name: str = "slide",
    downsamples: Sequence[float] = (1.0,),
) -> NDArray[np.int64]:
    """Corners of the tiles that hold enough tissue.

    On the default lattice, corner i of an axis is the rounded i * step * mpp / mpp0, so neighbours meet
    to within one level-0 pixel and no error builds up over the slide; tiles lie inside the slide.

    Args:
        size_px0: slide (width, height) in level-0 pixels.
        mpp0: micrometres per level-0 pixel.
        tissue: where the tissue is.
        spec: which tiles are wanted.
        name: the slide's name in messages.
        downsamples: of the slide's pyramid levels, for ``spec.level``.

    Returns:
        (N, 2) int64, x and y of each corner in level-0 pixels: sorted by y, then x on the default lattice;
        by x, then y on TRIDENT's; outline by outline, each by x, then y, on CLAM's.

    Raises:
        SlideError: ``spec.mpp`` is finer than the slide, the slide is smaller than a tile, there is no
            tissue, no tile holds enough of it, or no such level.
    """
    refuse_upsampling(mpp0, spec, name)
    scale = tile_scale(spec, mpp0, downsamples, name)
    grid = grid_of(spec, tissue)
    if spec.min_tissue != 0 and not tissue.cells.any():
        raise SlideError(f"{name}: no tissue found; look at the slide, or set tissue.threshold lower")
    if grid == "clam":
        return _clam_corners(tissue, size_px0, scale, name)
    x, y = (_corners(length, scale) for length in size_px0)
    if not len(x) or not len(y):
        raise SlideError(
            f"{name}: {size_px0[0]} x {size_px0[1]} px is smaller than one tile of {scale.side_px0:.0f} px (level 0); "
            f"use a smaller --tile-px or --target-mpp"
        )
    least = LEAST_TISSUE[grid] if spec.min_tissue is None else spec.min_tissue
    shares = lattice_coverage(tissue.cells, tissue.px0_per_cell, x, y, scale.side_px0)
    enough = shares >= least - 1e-9
    rows, columns = np.nonzero(enough) if grid == "mpp" else np.nonzero(enough.T)[::-1]
    if not len(rows):
        raise SlideError(f"{name}: no tile holds {least:.0%} tissue; lower --min-tissue or --tile-px")
    return np.stack([x[columns], y[rows]], axis=1)


def _clam_corners(tissue: TissueMask, size_px0: tuple[int, int], scale: TileScale, name: str) -> NDArray[np.int64]:
    xy_px0 = clam_tiles(tissue, size_px0, scale)
    if not len(xy_px0):
        raise SlideError(f"{name}: no tile of {scale.side_px0:g} px (level 0) lies in CLAM's outlines")
    return xy_px0


def grid_of(spec: TileSpec, tissue: TissueMask) -> Literal["mpp", "clam", "trident"]:
    """The grid that ``auto`` stands for: CLAM's where both tissue and level are CLAM's."""
    if spec.grid != "auto":
        return spec.grid
    return "clam" if spec.level is not None and tissue.method.startswith("clam") else "mpp"


def clam_tiles(tissue: TissueMask, size_px0: tuple[int, int], scale: TileScale) -> NDArray[np.int64]:
    """CLAM's tiles, in CLAM's order: outline by outline, x in the outer loop, y in the inner one.

    Each outline has its own lattice, from the corner of its bounding box. A tile is kept if at least one
    of four points (its centre plus and minus a quarter of its side, diagonally) is inside or on the
    outline, and its centre is not strictly inside a hole. Other rules are those of
    ``mhim.tissue.clam.ClamPreset.contour_fn``; with padding off, tiles end inside the slide.

    Returns:
        (N, 2) int64 corners in level-0 pixels.
    """
    rules = tissue.clam_rules
    side, step = int(scale.side_px0), max(1, int(scale.step_px0))
    kept = [np.empty((0, 2), dtype=np.int64)]
    for outline in tissue.outlines_px0():
        (left, top), (right, bottom) = outline.ring.min(axis=0).tolist(), (outline.ring.max(axis=0) + 1).tolist()
        if not rules.use_padding:
            right, bottom = min(right, size_px0[0] - side + 1), min(bottom, size_px0[1] - side + 1)
        x, y = np.arange(left, right, step), np.arange(top, bottom, step)
        corners = np.stack([grid.ravel() for grid in np.meshgrid(x, y, indexing="ij")], axis=1)
        inside = _in_outline(outline, corners, side, rules.contour_fn)
        corners = corners[inside]
        for hole in outline.holes:
            corners = corners[place_in_ring(hole, corners + side / 2) <= 0]
        kept.append(corners.astype(np.int64))
    return np.concatenate(kept)


def _in_outline(outline: Outline, corners: NDArray[np.int64], side: int, rule: str) -> NDArray[np.bool_]:
    if rule == "basic":
        return place_in_ring(outline.ring, corners) >= 0
    centres, quarter = corners + side // 2, int(side // 2 * 0.5)
    if rule == "center":
        return place_in_ring(outline.ring, centres) >= 0
    shifts = np.array([(-1, -1), (1, 1), (1, -1), (-1, 1)]) * quarter
    points = (centres[:, None, :] + shifts).reshape(-1, 2)
    inside = (place_in_ring(outline.ring, points) >= 0).reshape(-1, 4)
    return np.asarray(inside.all(axis=1) if rule == "four_pt_hard" else inside.any(axis=1))


def refuse_upsampling(mpp0: float, spec: TileSpec, name: str) -> None:
    """Refuse tiles finer than the slide.

    Raises:
        SlideError: ``spec.mpp`` is more than 3 % finer than ``mpp0``.
    """
    if spec.level is None and spec.mpp < mpp0 * (1 - UPSAMPLE_TOLERANCE):
        raise SlideError(
            f"{name}: target mpp {spec.mpp:g} is finer than the slide's {mpp0:.4g}; use --target-mpp >= {mpp0:.4g}"
        )


def tile_boxes(xy_px0: NDArray[np.int64], side_px0: float) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of square tiles in level-0 pixels."""
    corners = xy_px0.astype(np.float64)
    return np.hstack([corners, corners + side_px0])


def _corners(length_px0: int, scale: TileScale) -> NDArray[np.int64]:
    """Rounded corners along one axis whose tiles end inside the slide."""
    corners = np.rint(np.arange(int(length_px0 / scale.step_px0) + 1) * scale.step_px0).astype(np.int64)
    return corners[corners + scale.side_px0 <= length_px0 + 1e-6]
