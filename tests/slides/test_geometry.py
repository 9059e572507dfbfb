"""A mark of known place and size, read by every reader in every mode: within half a pixel at the target scale."""

import cv2
import numpy as np
import pytest

from mhim.slides import open_slide
from mhim.slides.array import ArraySlide
from slide_files import write_tiff
from tiff_files import write_jpeg, write_ome

SIDE_UM, INK = 24.0, 195
TILE_PX = 96
SCALES = [(0.25, 0.5), (0.2521, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0), (0.25, 1.0), (0.2521, 1.0), (0.25, 0.7)]


def marked(size_px, centre_px, side_px):
    """White with a dark square whose edges cut pixels exactly: (size, size, 3) uint8."""

    def cover(centre):
        edges = np.arange(size_px + 1)
        inside = np.clip(edges, centre - side_px / 2, centre + side_px / 2)
        return np.diff(inside)

    ink = np.outer(cover(centre_px[1]), cover(centre_px[0]))
    return np.repeat((255 - INK * ink).round().astype(np.uint8)[..., None], 3, axis=2)


def found(tile):
    """Centre (x, y) and side of the mark on a tile, in its pixels."""
    ink = 255.0 - tile.mean(axis=2)
    ink[ink < 12] = 0
    place = np.arange(len(tile)) + 0.5
    total = ink.sum()
    return (ink.sum(axis=0) @ place / total, ink.sum(axis=1) @ place / total), np.sqrt(total / INK)


def written(kind, path, pixels, mpp):
    """The pixels as a slide of one kind."""
    if kind == "array":
        return ArraySlide(pixels, mpp)
    if kind == "png":
        cv2.imwrite(str(path / "a.png"), pixels)
        return open_slide(path / "a.png", mpp0=mpp)
    if kind == "ome":
        return open_slide(write_ome(path / "a.ome.tif", pixels, mpp))
    if kind == "jpeg":
        return open_slide(write_jpeg(path / "a.svs", pixels, mpp, levels=1))
    if kind == "jpeg pyramid":
        return open_slide(write_jpeg(path / "a.tif", pixels, mpp, levels=3, is_aperio=False))
    return open_slide(write_tiff(path / "a.tif", pixels, mpp, levels=3), reader=kind)


@pytest.mark.parametrize("kind", ["array", "png", "openslide", "tiff", "jpeg", "jpeg pyramid", "ome"])
@pytest.mark.parametrize(("mpp0", "mpp"), SCALES)
def test_mark_at_its_place_and_size(tmp_path, kind, mpp0, mpp):
    """Tiles centred on the mark, at even and odd corners; also the single region that pictures are made of."""
    size_px = round(1.5 * TILE_PX * mpp / mpp0 / 8) * 8 + 5
    centre = np.array([size_px * 0.47 + 0.3, size_px * 0.52 + 0.9])
    slide = written(kind, tmp_path, marked(size_px, centre, SIDE_UM / mpp0), mpp0)
    corners = np.rint(centre - TILE_PX * mpp / mpp0 / 2).astype(int) + np.array([[0, 0], [1, 0], [1, 1], [2, 3]])
    with slide:
        for mode in ("parity", "fast"):
            tiles = np.empty((len(corners), TILE_PX, TILE_PX, 3), np.uint8)
            slide.read_many(corners, TILE_PX, mpp, tiles, mode)
            alone = slide.read((int(corners[1, 0]), int(corners[1, 1])), (TILE_PX, TILE_PX), mpp, mode)
            for tile, corner in zip([*tiles, alone], [*corners, corners[1]], strict=True):
                place, side = found(tile)
                np.testing.assert_allclose(place, (centre - corner) * mpp0 / mpp, atol=0.3)
                assert side == pytest.approx(SIDE_UM / mpp, abs=0.3)
