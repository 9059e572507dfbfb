"""Geometry from end to end: a dark rectangle on a slide, tiled and encoded, comes back at its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_exports import layers_of
from typer.testing import CliRunner

from mhim.bag import Bag, load_bag
from mhim.cli import app
from mhim.exports import ExportConfig
from mhim.exports.geojson import write_geojson
from mhim.exports.layers import SlideLayers, frame_of
from mhim.exports.ome_tiff import px0_per_px, write_ome_tiff
from mhim.maps.lattice import Lattice
from mhim.maps.underlay import make_underlay
from mhim.maps.values import TileValues
from scn_file import MARK_PX0, write_scn
from slide_files import stained, write_tiff

MEAN_RED = 17
"""Place of the mean of red among the features of the encoder ``colour``."""

TISSUE_RED, SCN_RED, MARK_RED = 205, 230, 120
MARK = (701, 433, 1090, 777)
SLIDES = {
    "20x": (0.5, ("--tile-px", "48")),
    "40x": (0.25, ("--tile-px", "32")),
    "odd mpp": (0.46, ("--tile-px", "48")),
    "overlap": (0.5, ("--tile-px", "48", "--stride-px", "16")),
    "gaps": (0.5, ("--tile-px", "32", "--stride-px", "40")),
    "bounds": (None, ("--tile-px", "48", "--min-tissue", "0")),
}


def tiled(folder: Path, mpp: float | None, options: tuple[str, ...]) -> Bag:
    """The bag of a slide with the rectangle, tiled at 0.5 um per pixel."""
    path = folder / ("slide.scn" if mpp is None else "slide.tif")
    if mpp is None:
        write_scn(path)
    else:
        pixels = stained(1600, 1200, (203, 157, 1450, 1107))
        pixels[MARK[1] : MARK[3], MARK[0] : MARK[2]] -= np.uint8(TISSUE_RED - MARK_RED)  # the texture stays
        write_tiff(path, pixels, mpp, levels=2)
    words = ["tile", str(path), "-o", str(folder / "tiles"), "--target-mpp", "0.5", "--keep-ink", *options]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(app, ["encode", str(folder / "tiles"), "-o", str(folder / "bags"), "--encoder", "colour"])
    assert said.exit_code == 0, said.output
    return load_bag(folder / "bags" / "slide.h5")


def share_of_mark(bag: Bag, ground_red: float) -> np.ndarray:
    """(N,) how much of a tile is dark, by its mean red."""
    red = 255 * bag.features[:, MEAN_RED].astype(np.float64)
    return (ground_red - red) / (ground_red - MARK_RED)


def box_px0(inside: np.ndarray, px0_per_px: tuple[float, float], corner: tuple[float, float]) -> np.ndarray:
    """Left, top, right, bottom of the true pixels, level 0."""
    rows, columns = np.nonzero(inside)
    low = np.array([columns.min(), rows.min()]) * px0_per_px + corner
    return np.concatenate([low, np.array([columns.max() + 1, rows.max() + 1]) * px0_per_px + corner])


@pytest.mark.parametrize("kind", SLIDES)
def test_a_rectangle_comes_back_at_its_place(kind: str, tmp_path: Path):
    """Within one place of the grid, in the picture, the OME-TIFF and the GeoJSON, whose origin is that of QuPath.

    The thumbnail below the map is not shifted either.
    """
    mpp, options = SLIDES[kind]
    bag = tiled(tmp_path, mpp, options)
    path, truth = Path(str(bag.attributes["slide_path"])), np.array(MARK_PX0 if mpp is None else MARK)
    assert bag.xy_px0 is not None
    assert bag.tile_size_px0 is not None
    share = share_of_mark(bag, SCN_RED if mpp is None else TISSUE_RED)
    lattice = Lattice.of_tiles(bag.xy_px0, bag.tile_size_px0)
    underlay = make_underlay(bag, None, lattice, 800)
    assert underlay.is_slide
    one_place = lattice.step_cells * lattice.cell_px0
    seen = np.nan_to_num(underlay.look_up(lattice, lattice.raster(share))) > 0.5
    step = underlay.px0_per_px
    assert np.abs(box_px0(seen, step, underlay.corner_px0) - truth).max() <= one_place + max(step)
    dark = underlay.rgb[..., 0] < (TISSUE_RED + MARK_RED) / 2
    assert np.abs(box_px0(dark, step, underlay.corner_px0) - truth).max() <= 2 * max(step)

    frame = frame_of(bag, bag.tile_size_px0, path, "auto")
    assert (frame.source == "bounds") == (mpp is None)
    values = TileValues(1, np.array([0.5, 0.5]), None, np.stack([1 - share, share], axis=1), None, None, 0.0)
    plain = layers_of(bag.xy_px0, bag.tile_size_px0, frame)
    layers = SlideLayers("slide", "run", "run", bag, bag.tile_size_px0, lattice, values, ("a", "b"), frame, plain.facts)
    check_exports(layers, truth, tmp_path)


def check_exports(layers: SlideLayers, truth: np.ndarray, folder: Path) -> None:
    """OpenSlide's pixels less the corner are where an independent reader finds the rectangle."""
    from PIL import Image
    from shapely.geometry import shape

    corner = np.array(layers.frame.corner_px0)
    one_place = layers.lattice.step_cells * layers.lattice.cell_px0
    expected = truth - np.tile(corner, 2)
    write_geojson(folder / "maps.geojson", layers, ExportConfig(region_threshold=0.5))
    found = [shape(f["geometry"]) for f in json.loads((folder / "maps.geojson").read_text())["features"]]
    names = [f["properties"]["objectType"] for f in json.loads((folder / "maps.geojson").read_text())["features"]]
    bounds = np.array([part.bounds for part, name in zip(found, names, strict=True) if name == "annotation"])
    region = np.concatenate([bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)])
    assert np.abs(region - expected).max() <= max(one_place, layers.tile_px0 / 2) + 1
    write_ome_tiff(folder / "maps.ome.tiff", layers, 4096)
    scale = px0_per_px(layers, 4096)
    with Image.open(folder / "maps.ome.tiff") as picture:
        inside = np.nan_to_num(np.asarray(picture)) > 0.5
    assert np.abs(box_px0(inside, (scale, scale), (0.0, 0.0)) - expected).max() <= one_place + scale
