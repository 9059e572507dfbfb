"""QuPath GeoJSON: every tile as a ``tile`` object with measurements, regions of high tiles as annotations."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhim.artefacts import write_text
from mhim.errors import ConfigError, FeatureError
from mhim.exports.config import ExportConfig
from mhim.exports.layers import ID_SPACE, SlideLayers

REGION_RGB = (200, 0, 80)


def write_geojson(path: Path, layers: SlideLayers, config: ExportConfig) -> None:
    """Write a FeatureCollection in level-0 pixels, counted from the corner of the frame.

    Tiles are ``objectType: tile`` with a measurement for each map and class; QuPath colours them by measurement.
    Regions are annotations that merge the tiles at or above the threshold, and by a share only tiles that speak for
    the class: probability above chance, contribution or attention above 0. The member ``mhim`` says what made the
    file and which corner was subtracted.

    Raises:
        ConfigError: regions are wanted of a map that the model does not have, or shapely is not installed.
    """
    about = layers.facts | {
        "tool": "mhim",
        "origin": layers.frame.source,
        "corner_px0": list(layers.frame.corner_px0),
        "mpp0": layers.frame.mpp0,
    }
    features = [*map(_text, _regions(layers, config)), *_tiles(layers)]
    head = f'{{"type":"FeatureCollection","mhim":{_text(about)},"features":['
    write_text(path, head + ",".join(features) + "]}\n")


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def region_cut(layers: SlideLayers, config: ExportConfig) -> tuple[float, str] | None:
    """The raw value from which a tile belongs to a region and the rule in words; None for no regions."""
    values = layers.maps.get(config.region_map)
    if values is None:
        if config.region_share == 0 and config.region_threshold is None:
            return None
        known = ", ".join(layers.maps) or "none"
        raise ConfigError(
            f"{layers.title} has no {config.region_map} map for regions (it has: {known}); choose region_map, "
            f"or region_share=0"
        )
    if config.region_threshold is not None:
        return config.region_threshold, f"{config.region_map} >= {config.region_threshold:g}"
    count = int(np.floor(config.region_share * len(values)))
    if count == 0:
        return None
    cut = float(np.partition(values, -count)[-count])
    return cut, f"{config.region_map}, top {100 * config.region_share:g} % of the tiles (>= {cut:.4g})"


def _tiles(layers: SlideLayers) -> Iterator[str]:
    """The tiles as JSON text; a hundred thousand of them are written by hand, which is several times faster."""
    measured: dict[str, NDArray[np.float64]] = {str(kind): values for kind, values in layers.maps.items()}
    if layers.values.probabilities is not None:
        del measured["probability"]
        columns = layers.values.probabilities.T
        measured |= {f"probability {name}": column for name, column in zip(layers.classes, columns, strict=True)}
    for name, values in measured.items():
        if not np.isfinite(values).all():
            raise FeatureError(f"{layers.slide_id}: a tile has no finite {name} by {layers.title}")
    keys = [_text(name) for name in measured]
    rows = np.stack(list(measured.values()), axis=1).tolist() if keys else [[]] * len(layers.bag)
    of_slide = sha1(ID_SPACE.bytes + f"{layers.slide_id}/{layers.run}/".encode(), usedforsecurity=False)
    for index, ((x0, y0, x1, y1), row) in enumerate(zip(_boxes(layers).tolist(), rows, strict=True)):
        digest = of_slide.copy()
        digest.update(str(index).encode())
        said = ",".join([f"{key}:{value!r}" for key, value in zip(keys, row, strict=True)])
        yield (
            f'{{"type":"Feature","id":"{_uuid5(digest.digest())}","geometry":{{"type":"Polygon","coordinates":'
            f"[[[{x0!r},{y0!r}],[{x1!r},{y0!r}],[{x1!r},{y1!r}],[{x0!r},{y1!r}],[{x0!r},{y0!r}]]]}},"
            f'"properties":{{"objectType":"tile","measurements":{{{said}}}}}}}'
        )


def _uuid5(digest: bytes) -> str:
    """The text of ``uuid.uuid5`` from the SHA-1 of space and name (RFC 9562, section 5.5)."""
    text = (digest[:6] + bytes([digest[6] & 0x0F | 0x50, digest[7], digest[8] & 0x3F | 0x80]) + digest[9:16]).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _regions(layers: SlideLayers, config: ExportConfig) -> list[dict[str, Any]]:
    found = region_cut(layers, config)
    if found is None:
        return []
    cut, rule = found
    try:
        from shapely import box, union_all
        from shapely.geometry import mapping
    except ModuleNotFoundError:
        raise ConfigError(
            "regions need shapely; pip install 'mhim[export]', or --set region_share=0 for tiles alone"
        ) from None
    values = layers.maps[config.region_map]
    chosen = (values >= cut) & (values > _floor(layers, config))
    if not chosen.any():
        return []
    merged = union_all(box(*_boxes(layers)[chosen].T)).normalize()
    parts = list(getattr(merged, "geoms", [merged]))
    target = layers.classes[layers.values.class_index]
    return [
        _feature(
            f"{layers.slide_id}/{layers.run}/region/{number}",
            json.loads(json.dumps(mapping(part))),
            {
                "objectType": "annotation",
                "name": f"{layers.title}: {rule}",
                "classification": {"name": f"{target} ({config.region_map})", "color": list(REGION_RGB)},
                "measurements": {"area px0^2": float(part.area)},
            },
        )
        for number, part in enumerate(parts)
    ]


def _floor(layers: SlideLayers, config: ExportConfig) -> float:
    """What a tile that says nothing has; a share of the tiles never takes such ones. A given threshold is obeyed."""
    if config.region_threshold is not None or config.region_map == "attention-score":
        return -np.inf
    return 1 / len(layers.classes) if config.region_map == "probability" else 0.0


def _boxes(layers: SlideLayers) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of each tile in the frame; whole numbers where the tile size is one."""
    assert layers.bag.xy_px0 is not None
    first = layers.bag.xy_px0 - np.array(layers.frame.corner_px0)
    return np.hstack([first, first + layers.tile_px0]).astype(np.float64)


def _feature(name: str, geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """A feature whose id follows from its name, so that equal input gives equal bytes."""
    return {"type": "Feature", "id": str(uuid.uuid5(ID_SPACE, name)), "geometry": geometry, "properties": properties}
