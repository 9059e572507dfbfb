"""What lies below a map: the slide's thumbnail, or a plain ground, and the outline of the annotation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mhim.annotations import OUTLINE_SUFFIXES, read_outlines
from mhim.bag import Bag
from mhim.cohort import SlideRow
from mhim.errors import FeatureError, SlideError
from mhim.maps.lattice import Lattice

PLAIN_RGB, TILE_RGB = (226, 226, 230), (250, 250, 250)
GREY_SHARE, LIGHTEN = 0.8, 0.25
LUMINANCE = (0.299, 0.587, 0.114)
LINE_SHARE = 400
MAX_TILE_PX = 32
INSIDE = 0.5


@dataclass(frozen=True)
class Underlay:
    """A picture of the slide and its place.

    Attributes:
        rgb: (h, w, 3) uint8.
        corner_px0: (x, y) of its corner in level-0 pixels.
        px0_per_px: (x, y) level-0 pixels a picture pixel.
        is_slide: whether it shows the slide, not a plain ground.
        annotation: (h, w) bool, true inside the annotation, or None.
        notices: what the reader has to know, one sentence each.
    """

    rgb: NDArray[np.uint8]
    corner_px0: tuple[float, float]
    px0_per_px: tuple[float, float]
    is_slide: bool
    annotation: NDArray[np.bool_] | None = None
    notices: tuple[str, ...] = ()

    @property
    def size_px(self) -> tuple[int, int]:
        """(w, h) of the picture."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def look_up(self, lattice: Lattice, raster: NDArray[np.float64]) -> NDArray[np.float64]:
        """(h, w, ...) raster of a lattice as this picture sees it, NaN where there is no tile."""
        return lattice.sample(raster, self.size_px, self.px0_per_px, self.corner_px0)

    @cached_property
    def muted(self) -> NDArray[np.float32]:
        """(h, w, 3) float32 in [0, 255]: most of the stain taken out and lightened, so that map colours stand out."""
        colour = self.rgb.astype(np.float32)
        grey = (colour @ np.array(LUMINANCE, dtype=np.float32))[..., None]
        muted = GREY_SHARE * grey + (1 - GREY_SHARE) * colour
        return (muted + LIGHTEN * (255 - muted)).astype(np.float32)

    @cached_property
    def outlines(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """(h, w) bool each: the dark line along the annotation's inner edge, and the light halo within it."""
        if self.annotation is None:
            return None
        width_px = max(2, round(max(self.size_px) / LINE_SHARE))
        inner = _eroded(self.annotation, width_px)
        return self.annotation & ~inner, inner & ~_eroded(inner, max(1, width_px // 2))


def make_underlay(bag: Bag, row: SlideRow | None, lattice: Lattice, max_side_px: int) -> Underlay:
    """The thumbnail of a bag's slide, or a plain ground with a notice when the slide is not there.

    Args:
        bag: the slide's tiles.
        row: the slide in the cohort table: its file and its annotation; None without a table.
        lattice: where the tiles lie.
        max_side_px: longer side of the picture.

    Raises:
        FeatureError: tiles lie outside the slide, so the coordinates are not its level-0 pixels.
    """
    path, said = slide_path(bag, row)
    notices = list(said)
    underlay = None
    if path is not None:
        try:
            underlay = _thumbnail(path, bag, row, lattice, max_side_px)
        except SlideError as error:
            notices.append(f"plain ground: {error}")
    underlay = underlay or _plain(bag, lattice, max_side_px)
    annotation, trouble = _annotation(underlay, bag, row, lattice)
    return Underlay(
        underlay.rgb,
        underlay.corner_px0,
        underlay.px0_per_px,
        underlay.is_slide,
        annotation,
        (*notices, *trouble),
    )


def slide_path(bag: Bag, row: SlideRow | None) -> tuple[Path | None, tuple[str, ...]]:
    """The slide file of a bag, by the cohort or by the bag itself, and why there is none."""
    path = row.path if row is not None and row.path is not None else None
    if path is None and bag.attributes.get("slide_path"):
        path = Path(str(bag.attributes["slide_path"]))
    if path is None:
        return None, ("plain ground: neither the cohort nor the bag names a slide file",)
    if not path.exists():
        return None, (f"plain ground: the slide file {path.name} is not there",)
    return path, ()


def _thumbnail(path: Path, bag: Bag, row: SlideRow | None, lattice: Lattice, max_side_px: int) -> Underlay:
    from mhim.slides import open_slide

    mpp = (row.mpp if row is not None else None) or bag.attributes.get("slide_mpp")
    with open_slide(path, bag.slide_id, float(mpp) if mpp else 1.0) as slide:  # a thumbnail needs no true scale
        size_px0 = slide.size_px0
        beyond = _extent(lattice)
        if any(reach > size + lattice.cell_px0 * 2 + 1 for reach, size in zip(beyond, size_px0, strict=True)):
            reach = f"{beyond[0]:.0f} x {beyond[1]:.0f}"
            raise FeatureError(
                f"{bag.slide_id}: tiles reach {reach} px but {path.name} has {size_px0[0]} x {size_px0[1]}; "
                f"the coordinates are not level-0 pixels of this slide"
            )
        rgb = slide.thumbnail(max_side_px)
    height, width = rgb.shape[:2]
    return Underlay(rgb, (0.0, 0.0), (size_px0[0] / width, size_px0[1] / height), is_slide=True)


def _plain(bag: Bag, lattice: Lattice, max_side_px: int) -> Underlay:
    """A ground around the tiles, with a margin; tiles are at most ``MAX_TILE_PX`` wide."""
    margin = max(lattice.cell_px0, 0.02 * max(lattice.shape) * lattice.cell_px0)
    corner = (lattice.origin_px0[0] - margin, lattice.origin_px0[1] - margin)
    extent = [reach + margin - start for reach, start in zip(_extent(lattice), corner, strict=True)]
    tile_px0 = float((lattice.boxes[:, 2] - lattice.boxes[:, 0]).max()) * lattice.cell_px0
    px0_per_px = max(max(extent) / max_side_px, tile_px0 / MAX_TILE_PX)
    width, height = (max(1, round(side / px0_per_px)) for side in extent)
    rgb = np.full((height, width, 3), PLAIN_RGB, dtype=np.uint8)
    plain = Underlay(rgb, corner, (px0_per_px, px0_per_px), is_slide=False)
    rgb[np.isfinite(plain.look_up(lattice, lattice.raster(np.zeros(len(bag)))))] = TILE_RGB
    return plain


def _extent(lattice: Lattice) -> tuple[float, float]:
    """(x, y) of the far corner of all tiles, level-0 pixels."""
    rows, columns = lattice.shape
    return (
        lattice.origin_px0[0] + columns * lattice.cell_px0,
        lattice.origin_px0[1] + rows * lattice.cell_px0,
    )


def _annotation(
    underlay: Underlay, bag: Bag, row: SlideRow | None, lattice: Lattice
) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """The annotated region as the picture sees it: the cohort's mask file, else the bag's tile truth."""
    trouble: tuple[str, ...] = ()
    if row is not None and row.annotation is not None and underlay.is_slide:
        try:
            return _annotated_pixels(row.annotation, underlay), ()
        except (OSError, SlideError):
            trouble = (f"no outline: the annotation {row.annotation.name} is missing or cannot be read",)
    if bag.annotation_fraction is None:
        return None, trouble
    inside = underlay.look_up(lattice, lattice.raster(bag.annotation_fraction))
    return np.nan_to_num(inside) >= INSIDE, trouble


def _eroded(region: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """The region without a rim of ``width_px`` (a square neighbourhood); the picture's border is outside."""
    for axis in (0, 1):
        padded = np.pad(region, [(width_px, width_px) if axis == a else (0, 0) for a in (0, 1)])
        run = np.cumsum(padded, axis=axis, dtype=np.int32)
        zero = np.zeros_like(run.take([0], axis=axis))
        run = np.concatenate([zero, run], axis=axis)
        side = 2 * width_px + 1
        length = region.shape[axis]
        region = run.take(range(side, side + length), axis=axis) - run.take(range(length), axis=axis) == side
    return region


def _annotated_pixels(path: Path, underlay: Underlay) -> NDArray[np.bool_]:
    """(h, w) which pixels of the picture lie inside, for at least half."""
    width, height = underlay.size_px
    if path.suffix.lower() not in OUTLINE_SUFFIXES:
        return _mask_file(path, underlay.size_px)
    x, y = (
        np.arange(side + 1, dtype=np.float64) * step
        for side, step in zip((width, height), underlay.px0_per_px, strict=True)
    )
    left, top = (corner.ravel() for corner in np.meshgrid(x[:-1], y[:-1]))
    right, bottom = (corner.ravel() for corner in np.meshgrid(x[1:], y[1:]))
    boxes_px0 = np.stack([left, top, right, bottom], axis=1).astype(np.float64)
    return (read_outlines(path).fractions(boxes_px0) >= INSIDE).reshape(height, width)


def _mask_file(path: Path, size_px: tuple[int, int]) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # masks of whole slides are large
        with Image.open(path) as image:
            grey = image.convert("L").point(lambda level: 255 if level else 0)
            return np.asarray(grey.resize(size_px, Image.Resampling.BOX)) >= 128
