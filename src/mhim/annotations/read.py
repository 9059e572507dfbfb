"""Outline files as regions in level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mhim.annotations.outlines import Outlines, Points, Region
from mhim.errors import SlideError

EXCLUDED = frozenset(
    {
        "_2",
        "exclusion",
        "exclude",
        "excluded",
        "normal",
        "non-tumor",
        "non-tumour",
        "negative",
        "hole",
        "ignore",
        "ignore*",
    }
)
"""Names, in lower case, of groups and classes that are cut out: ``_2`` is CAMELYON16's, ``Ignore*`` QuPath's."""


def read_outlines(path: Path) -> Outlines:
    """The outlines in a file, by its suffix: ``.xml`` (ASAP), ``.geojson`` or ``.json`` (QuPath, or positive/negative).

    Points and lines have no area and are left out. Every named class counts as inside except those in ``EXCLUDED``.

    Raises:
        SlideError: missing, of another kind, or not readable as what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise SlideError(f"{path}: not an outline file (known: {', '.join(READERS)})")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SlideError(f"{path}: the annotation cannot be read ({error.strerror})") from None
    try:
        return Outlines(tuple(READERS[suffix](content)))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ElementTree.ParseError) as error:
        raise SlideError(f"{path}: not a readable {suffix} annotation ({type(error).__name__}: {error})") from None


def _asap(content: bytes) -> Iterator[Region]:
    """ASAP: ``Annotation`` elements with ordered ``Coordinate``; a group may hold groups."""
    if b"<!DOCTYPE" in content[:4096] or b"<!ENTITY" in content:
        raise ValueError("a document type is not part of the format")
    root = ElementTree.fromstring(content)
    if root.find("Annotations") is None:
        raise ValueError("no element Annotations")
    parent = {group.get("Name"): group.get("PartOfGroup") for group in root.iter("Group")}
    for annotation in root.iter("Annotation"):
        if annotation.get("Type") not in ("Polygon", "Spline", "Rectangle"):
            continue
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: int(float(corner.attrib["Order"])))
        ring = _ring([(float(corner.attrib["X"]), float(corner.attrib["Y"])) for corner in corners])
        group = annotation.get("PartOfGroup") or ""
        groups, above = [group], parent.get(group)
        while above and above not in groups:
            groups.append(above)
            above = parent.get(above)
        if ring is not None:
            yield Region((ring,), group, any(name.lower() in EXCLUDED for name in groups))


def _json(content: bytes) -> Iterator[Region]:
    """GeoJSON, or ``{"positive": [{"name", "vertices"}], "negative": [...]}``."""
    whole = json.loads(content)
    if isinstance(whole, dict) and ("positive" in whole or "negative" in whole):
        for kind in ("positive", "negative"):
            for each in whole.get(kind, []):
                ring = _ring(each["vertices"])
                if ring is not None:
                    yield Region((ring,), str(each.get("name", "")), kind == "negative")
        return
    yield from _geojson(whole)


def _geojson(node: Any, name: str = "") -> Iterator[Region]:
    if isinstance(node, list):
        for member in node:
            yield from _geojson(member, name)
        return
    kind = node["type"]
    if kind == "FeatureCollection":
        yield from _geojson(node["features"])
    elif kind == "Feature":
        facts = node.get("properties") or {}
        classified = facts.get("classification") or {}
        if node.get("geometry") is not None:
            yield from _geojson(node["geometry"], str(classified.get("name") or facts.get("name") or ""))
    elif kind == "GeometryCollection":
        yield from _geojson(node["geometries"], name)
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [node["coordinates"]] if kind == "Polygon" else node["coordinates"]:
            rings = tuple(ring for points in polygon if (ring := _ring(points)) is not None)
            if rings:
                yield Region(rings, name, name.lower() in EXCLUDED)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"unknown type {kind}")


def _ring(points: Any) -> Points | None:
    """(K, 2) corners, None for fewer than three."""
    if len(points) < 3:
        return None
    ring = np.array([(float(point[0]), float(point[1])) for point in points], dtype=np.float64)
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is not finite")
    return ring


READERS: dict[str, Callable[[bytes], Iterator[Region]]] = {".xml": _asap, ".geojson": _json, ".json": _json}
OUTLINE_SUFFIXES = tuple(READERS)
