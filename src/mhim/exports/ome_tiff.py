"""Pyramidal OME-TIFF of the maps: one float32 channel a map, on the slide's grid, with its physical size."""

from __future__ import annotations

import json
import math
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.artefacts import atomic_path
from mhim.errors import ConfigError
from mhim.exports.layers import ID_SPACE, SlideLayers

TILE_PX, SMALLEST_LEVEL_PX = 256, 256
CELLS = 2
CREATOR = "mhim"

Image = NDArray[np.float32]


def px0_per_px(layers: SlideLayers, max_side_px: int) -> int:
    """Level-0 pixels a picture pixel, a whole number: half a lattice cell, or coarser where the side would not fit."""
    fine = max(1, math.floor(layers.lattice.cell_px0 / CELLS))
    return max(fine, math.ceil(max(layers.frame.size_px0) / max_side_px))


def render_maps(layers: SlideLayers, scale: int) -> Image:
    """(maps, h, w) float32: the raw value of the tile under each pixel's centre, NaN where there is none.

    Args:
        layers: the maps.
        scale: level-0 pixels a picture pixel.
    """
    size_px = (math.ceil(layers.frame.size_px0[0] / scale), math.ceil(layers.frame.size_px0[1] / scale))
    corner = (float(layers.frame.corner_px0[0]), float(layers.frame.corner_px0[1]))
    rendered = np.empty((len(layers.maps), size_px[1], size_px[0]), dtype=np.float32)
    for channel, values in enumerate(layers.maps.values()):
        raster = layers.lattice.raster(values)
        rendered[channel] = layers.lattice.sample(raster, size_px, (scale, scale), corner)
    return rendered


def halved(image: Image) -> Image:
    """(maps, ceil(h/2), ceil(w/2)): mean of the four pixels below, over those that are not NaN."""
    height, width = image.shape[1:]
    padded = np.pad(image, [(0, 0), (0, height % 2), (0, width % 2)], constant_values=np.nan)
    blocks = padded.reshape(len(image), padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(blocks, axis=(2, 4)).astype(np.float32)


def write_ome_tiff(path: Path, layers: SlideLayers, max_side_px: int) -> None:
    """Write the maps as BigTIFF, tiled, with a SubIFD pyramid; channels are named after the maps.

    The picture covers the frame; a pixel is ``px0_per_px`` level-0 pixels wide, and its physical size is that times
    the slide's mpp. Values are raw; NaN where there is no tile.

    Raises:
        ConfigError: tifffile is not installed.
    """
    try:
        from tifffile import TiffWriter
    except ModuleNotFoundError:
        raise ConfigError("OME-TIFF needs tifffile; pip install 'mhim[export]'") from None
    scale = px0_per_px(layers, max_side_px)
    levels = [render_maps(layers, scale)]
    while max(levels[-1].shape[1:]) > SMALLEST_LEVEL_PX:
        levels.append(halved(levels[-1]))
    metadata: dict[str, object] = {
        "axes": "CYX",
        "Name": f"{layers.slide_id}: {layers.title}",
        "Channel": {"Name": list(layers.maps)},
        "UUID": f"urn:uuid:{uuid.uuid5(ID_SPACE, json.dumps(layers.facts, sort_keys=True))}",
    }
    if layers.frame.mpp0 is not None:
        metadata |= {"PhysicalSizeX": scale * layers.frame.mpp0, "PhysicalSizeXUnit": "µm"}
        metadata |= {"PhysicalSizeY": scale * layers.frame.mpp0, "PhysicalSizeYUnit": "µm"}
    options: dict[str, Any] = {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "minisblack",
        "compression": "zlib",
        "predictor": True,
    }
    with atomic_path(path) as temporary, TiffWriter(temporary, bigtiff=True, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=metadata, software=CREATOR, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, software=CREATOR, **options)
