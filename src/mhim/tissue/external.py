"""Tissue given from outside: polygons (GeoJSON, as QuPath writes) or an image of the whole slide."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.errors import SlideError
from mhim.tissue.raster import TissueMask
from mhim.tissue.regions import Outline, filled

ASPECT_TOLERANCE = 0.02
POLYGON_SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
CELLS_ALONG = 4096
SLACK_PX0 = 2


def mask_file(folder: Path, slide_id: str) -> Path:
    """The mask of a slide in a folder: ``<slide_id>.geojson``, ``.json``, ``.png``, ``.tif`` or the like.

    A name with ``_mask`` after the slide's is taken too.

    Raises:
        SlideError: no such file, or more than one.
    """
    names = [f"{slide_id}{tail}{suffix}" for tail in ("", "_mask") for suffix in POLYGON_SUFFIXES + IMAGE_SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise SlideError(f"{slide_id}: no tissue mask in {folder} (looked for {slide_id}.geojson, .json, .png, .tif)")
    if len(found) > 1:
        raise SlideError(f"{slide_id}: two tissue masks in {folder} ({found[0].name}, {found[1].name}); keep one")
    return found[0]


def read_mask(path: Path, size_px0: tuple[int, int], mpp0: float) -> TissueMask:
    """The tissue that a file gives.

    Args:
        path: GeoJSON with polygons in level-0 pixels (origin at the top left of the uncropped slide), or an
            image of the whole slide at any scale, non-zero inside.
        size_px0: slide (width, height) in level-0 pixels.
        mpp0: micrometres per level-0 pixel.

    Raises:
        SlideError: missing, neither of these, of another shape than the slide, empty, or outside the slide.
    """
    method = f"file:{path.name}"
    if path.name.lower().endswith(POLYGON_SUFFIXES):
        outlines = read_outlines(path, size_px0)
        per_cell = max(1.0, max(size_px0) / CELLS_ALONG)
        width, height = (max(1, math.ceil(side / per_cell - 1e-9)) for side in size_px0)
        cells = filled(outlines, (height, width), (per_cell, per_cell))
        return TissueMask(cells, (per_cell, per_cell), per_cell * mpp0, method, outlines=outlines)
    cells, px0_per_cell = read_image(path, size_px0, "tissue mask")
    if not cells.any():
        raise SlideError(f"{path}: the tissue mask is empty (all zero); non-zero pixels are tissue")
    return TissueMask(cells, px0_per_cell, mpp0 * math.sqrt(px0_per_cell[0] * px0_per_cell[1]), method)


def read_image(path: Path, size_px0: tuple[int, int], what: str) -> tuple[NDArray[np.bool_], tuple[float, float]]:
    """Non-zero pixels of an image of the whole slide, and level-0 pixels per pixel along x and y.

    Args:
        path: any image that OpenCV reads; the first three channels count.
        size_px0: slide (width, height) in level-0 pixels.
        what: what to call the image in messages.

    Raises:
        SlideError: missing, not an image, or not of the slide's shape.
    """
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if pixels is None:
        raise SlideError(f"{path}: {what} is missing or not an image")
    inside = np.asarray(np.atleast_3d(np.asarray(pixels))[..., :3].any(axis=2))
    height, width = pixels.shape[:2]
    px0_per_cell = (size_px0[0] / width, size_px0[1] / height)
    slack = ASPECT_TOLERANCE + 1.0 / min(width, height)
    if abs(px0_per_cell[0] / px0_per_cell[1] - 1) > slack:
        raise SlideError(
            f"{path}: {what} of {width} x {height} px does not have the shape of the slide "
            f"({size_px0[0]} x {size_px0[1]}); it must cover the whole slide"
        )
    return inside, px0_per_cell


def read_outlines(path: Path, size_px0: tuple[int, int]) -> tuple[Outline, ...]:
    """The polygons of a GeoJSON file in level-0 pixels, fractions rounded.

    FeatureCollection, one Feature, a geometry, or a list of features (older QuPath); Polygon and
    MultiPolygon count, points and lines do not.

    Raises:
        SlideError: missing, not GeoJSON, a ring that is no ring, no polygon, or outside the slide.
    """
    document = _read_json(path)
    outlines = tuple(_outline(path, rings) for rings in _polygons(path, document))
    if not outlines:
        raise SlideError(f"{path}: no polygon in the file; draw the tissue as areas (Polygon or MultiPolygon)")
    corners = np.concatenate([outline.ring for outline in outlines])
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (low < -SLACK_PX0).any() or (high > np.asarray(size_px0) + SLACK_PX0).any():
        raise SlideError(
            f"{path}: polygons reach from {low.tolist()} to {high.tolist()}, outside the slide of {size_px0[0]} x "
            f"{size_px0[1]}; coordinates must be level-0 pixels from the slide's top left corner"
        )
    return outlines


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
        return json.loads(text)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such tissue mask") from None
    except (OSError, ValueError, EOFError) as error:
        raise SlideError(f"{path}: not readable GeoJSON ({error})") from None


def _polygons(path: Path, node: Any) -> Iterator[Sequence[Any]]:
    """Coordinates of every polygon: its rings, the outer one first."""
    if isinstance(node, list):
        for member in node:
            yield from _polygons(path, member)
        return
    if not isinstance(node, Mapping):
        raise SlideError(f"{path}: not GeoJSON (expected objects with 'type')")
    kind = node.get("type")
    if kind == "FeatureCollection":
        yield from _polygons(path, node.get("features") or [])
    elif kind == "Feature":
        yield from _polygons(path, node.get("geometry") or [])
    elif kind == "GeometryCollection":
        yield from _polygons(path, node.get("geometries") or [])
    elif kind == "Polygon":
        yield node.get("coordinates") or []
    elif kind == "MultiPolygon":
        yield from node.get("coordinates") or []
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise SlideError(f"{path}: not GeoJSON (unknown type {kind!r})")


def _outline(path: Path, coordinates: Sequence[Any]) -> Outline:
    rings = [_ring(path, ring) for ring in coordinates]
    if not rings:
        raise SlideError(f"{path}: a polygon without coordinates")
    return Outline(rings[0], tuple(rings[1:]))


def _ring(path: Path, coordinates: Any) -> NDArray[np.int32]:
    try:
        points = np.asarray([pair[:2] for pair in coordinates], dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
        raise SlideError(f"{path}: a ring needs at least three finite points (x, y)")
    if (points[0] == points[-1]).all() and len(points) > 3:
        points = points[:-1]
    return np.rint(points).astype(np.int32)
