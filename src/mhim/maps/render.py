"""Pixels of a map: colours over the slide, outline of the annotation, colour bar."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mhim.maps.lattice import Lattice
from mhim.maps.scale import Scale
from mhim.maps.smooth import smooth_picture
from mhim.maps.underlay import Underlay

Rgb = NDArray[np.uint8]
OUTLINE_RGB = (16, 16, 16)
HALO_RGB = (255, 255, 255)


def draw_map(
    underlay: Underlay, lattice: Lattice, values: NDArray[np.floating], scale: Scale, smooth: bool = False
) -> Rgb:
    """(h, w, 3) uint8: tile values in colour over the muted slide, with the annotation's outline.

    Args:
        underlay: the slide's picture and place.
        lattice: where the tiles lie.
        values: (N,) raw values.
        scale: from value to colour and opacity.
        smooth: interpolate between tile centres (see ``maps.smooth``), else every tile has one colour.
    """
    if smooth:
        place = (underlay.size_px, underlay.px0_per_px, underlay.corner_px0)
        seen = scale.colours(smooth_picture(lattice, values, *place))
    else:
        seen = underlay.look_up(lattice, scale.colours(lattice.raster(values)))
    rgba = np.nan_to_num(seen.astype(np.float32))
    ground = underlay.muted if underlay.is_slide else underlay.rgb
    mixed = ground * (1 - rgba[..., 3:]) + 255 * rgba[..., :3] * rgba[..., 3:]
    return draw_outline(np.rint(mixed).astype(np.uint8), underlay)


def draw_outline(rgb: Rgb, underlay: Underlay) -> Rgb:
    """The picture with the annotation outlined: dark with a light halo, so that it shows on any colour."""
    if underlay.outlines is None:
        return rgb
    line, halo = underlay.outlines
    drawn = rgb.copy()
    drawn[halo] = HALO_RGB
    drawn[line] = OUTLINE_RGB
    return drawn


def draw_bar(scale: Scale, width_px: int, height_px: int) -> Rgb:
    """(height, width, 3) uint8: the colour bar from low (left) to high, at the opacity that the map has."""
    rgba = scale.colours(np.linspace(scale.low, scale.high, width_px))
    ground = np.full(3, 0.93)
    row = ground * (1 - rgba[:, 3:]) + rgba[:, :3] * rgba[:, 3:]
    return np.broadcast_to(np.rint(255 * row).astype(np.uint8), (height_px, width_px, 3)).copy()
