"""The direct TIFF reader against OpenSlide: a few stored tiles of each level, which must not differ at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openslide

from mhim.errors import SlideError
from mhim.slides.openslide import on_white
from mhim.slides.tiff import TiffSlide

TILES_LEVEL_0, TILES_OTHER = 3, 1
WHOLE_PX = 1e-3


def find_difference(slide: TiffSlide, reference: openslide.OpenSlide) -> str | None:
    """Why a slide is better read by OpenSlide, or None where both give the same pixels.

    The tiles with most bytes are compared, those that hold most detail; on coarser levels, among the tiles
    whose corner OpenSlide can be asked for exactly. Levels that OpenSlide does not see are not compared.
    """
    if slide.size_px0 != reference.dimensions:
        return f"it is {slide.size_px0[0]} x {slide.size_px0[1]} px, OpenSlide says {reference.dimensions}"
    if any(not level.counts.all() for level in slide.levels):
        return "some of its tiles are not stored"
    for number, level in enumerate(slide.levels):
        if level.size_px not in reference.level_dimensions:
            continue
        theirs = reference.level_dimensions.index(level.size_px)
        for index, corner_px0 in _samples(slide, number, reference.level_downsamples[theirs]):
            try:
                difference = _difference(slide, number, index, reference, theirs, corner_px0)
            except (SlideError, openslide.OpenSlideError) as error:
                return str(error)
            if difference:
                return f"tile {index} of level {number} differs by {difference} of 255"
    return None


def _samples(slide: TiffSlide, number: int, downsample: float) -> Iterator[tuple[int, tuple[int, int]]]:
    """Tiles of a level to compare, and their corners as OpenSlide counts them in level-0 pixels."""
    level = slide.levels[number]
    left = TILES_OTHER if number else TILES_LEVEL_0
    for index in np.argsort(-level.counts, kind="stable").tolist():
        corner = (index % level.columns * level.tile_px[0], index // level.columns * level.tile_px[1])
        exact = [place * downsample for place in corner]
        if all(abs(place - round(place)) <= WHOLE_PX for place in exact):
            yield index, (round(exact[0]), round(exact[1]))
            left -= 1
            if not left:
                return


def _difference(
    slide: TiffSlide,
    number: int,
    index: int,
    reference: openslide.OpenSlide,
    theirs: int,
    corner_px0: tuple[int, int],
) -> int:
    """Largest difference of a stored tile inside the level."""
    level = slide.levels[number]
    column, row = index % level.columns, index // level.columns
    width = min(level.tile_px[0], level.size_px[0] - column * level.tile_px[0])
    height = min(level.tile_px[1], level.size_px[1] - row * level.tile_px[1])
    ours = slide.read_stored(number, index)[:height, :width]
    region = on_white(reference.read_region(corner_px0, theirs, (width, height)))
    return int(np.abs(ours.astype(np.int16) - region).max())
