"""What is exported of one slide by one run: tiles, values, frame."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from mhim.bag import Bag
from mhim.errors import FeatureError, SlideError
from mhim.exports.config import Origin
from mhim.maps.config import ALL_KINDS, MapKind
from mhim.maps.lattice import Lattice, tile_size_or_step
from mhim.maps.study import RunMaps
from mhim.maps.underlay import slide_path
from mhim.maps.values import TileValues, Values

ID_SPACE = uuid.UUID("6f0d6d0c-3a55-5f0e-9a3b-6d68696d0001")
"""Name space of the ids in exported files, which follow from their content."""


@dataclass(frozen=True)
class Frame:
    """Where the origin of exported coordinates lies, and how large the picture is.

    Attributes:
        corner_px0: (x, y) of the origin in level-0 pixels of the whole slide; subtracted on export.
        size_px0: (w, h) of what is exported, level-0 pixels.
        mpp0: micrometres per level-0 pixel, or None when unknown.
        source: "level0", "bounds" (the slide's scanned area) or "tiles" (the slide's size is unknown).
    """

    corner_px0: tuple[int, int]
    size_px0: tuple[int, int]
    mpp0: float | None
    source: str


@dataclass(frozen=True)
class SlideLayers:
    """The maps of one slide by one run, in their frame.

    Attributes:
        slide_id, run, title: the slide, slug and title of the run.
        bag: the tiles.
        tile_px0: side of a tile, level-0 pixels.
        lattice: where the tiles lie.
        values: the maps.
        classes: class names in index order.
        frame: origin, size and scale.
        facts: what was said of the slide by which fold, for the files' metadata.
    """

    slide_id: str
    run: str
    title: str
    bag: Bag
    tile_px0: float
    lattice: Lattice
    values: TileValues
    classes: tuple[str, ...]
    frame: Frame
    facts: dict[str, object]

    @property
    def maps(self) -> dict[MapKind, Values]:
        """(N,) values of every map that the model has."""
        maps: dict[MapKind, Values] = {}
        for kind in ALL_KINDS:
            values = self.values.of(kind)
            if values is not None:
                maps[kind] = values
        return maps


def slide_layers(source: RunMaps, slide_id: str, slide: Path | None, origin: Origin) -> SlideLayers:
    """The exportable maps of a slide by a run.

    Args:
        source: the run.
        slide_id: a slide that it can draw.
        slide: its file by the cohort table; None takes the one that the bag names.
        origin: see :class:`mhim.exports.ExportConfig`.

    Raises:
        FeatureError: the bag has no coordinates or tile size, or is not the one that the run scored.
        SlideError: ``bounds`` was asked for and the slide has none, or is not there.
    """
    bag = source.bag(slide_id)
    path = source.bag_path(slide_id)
    if bag.xy_px0 is None:
        raise FeatureError(f"{path}: no coordinates ('coords'), so its tiles have no place; encode again with them")
    tile_px0, _ = tile_size_or_step(bag.xy_px0, bag.tile_size_px0, path)
    said = source.prediction(slide_id)
    classes = source.run.classes
    values = source.values(bag, slide_id)
    facts: dict[str, object] = {
        "slide_id": slide_id,
        "run": source.run.config.title,
        "run_identity": source.run.info["identity"],
        "fold": said.fold,
        "y_true": said.y_true,
        "y_pred": said.y_pred,
        "map_class": classes[values.class_index],
        "probabilities": {name: float(p) for name, p in zip(classes, values.slide_probabilities, strict=True)},
        "score": values.score,
        "bias": values.bias,
    }
    return SlideLayers(
        slide_id,
        source.slug,
        source.run.config.title,
        bag,
        tile_px0,
        Lattice.of_tiles(bag.xy_px0, tile_px0),
        values,
        classes,
        frame_of(bag, tile_px0, slide, origin),
        facts,
    )


def frame_of(bag: Bag, tile_px0: float, slide: Path | None, origin: Origin) -> Frame:
    """The frame of a bag's slide.

    QuPath shows the scanned area alone where the file records one (``openslide.bounds-*``; MRXS, SCN), and counts
    from its corner; OpenSlide, and our coordinates, count from the uncropped level 0 (qupath issue 1278).
    """
    mpp = bag.attributes.get("slide_mpp")
    mpp0 = float(mpp) if mpp else None
    path = slide if slide is not None else slide_path(bag, None)[0]
    bounds = None if origin == "level0" or path is None or not path.exists() else bounds_px0(path)
    if bounds is not None:
        return Frame(bounds[0], bounds[1], mpp0, "bounds")
    if origin == "bounds":
        where = path.name if path is not None else bag.slide_id
        raise SlideError(f"{where}: no scanned area (openslide.bounds-*) in it, or no slide file; use --origin auto")
    width, height = (bag.attributes.get(f"level0_{side}") for side in ("width", "height"))
    if width and height:
        return Frame((0, 0), (int(width), int(height)), mpp0, "level0")
    assert bag.xy_px0 is not None
    reach = (bag.xy_px0.max(axis=0) + tile_px0).round().astype(int)
    return Frame((0, 0), (int(reach[0]), int(reach[1])), mpp0, "tiles")


def bounds_px0(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Corner (x, y) and size (w, h) of the scanned area in level-0 pixels, None where the file records none."""
    try:
        import openslide
    except ModuleNotFoundError:
        return None
    try:
        with openslide.OpenSlide(path) as file:
            found = [file.properties.get(f"openslide.bounds-{key}") for key in ("x", "y", "width", "height")]
    except openslide.OpenSlideError:
        return None
    if any(value is None for value in found):
        return None
    x, y, width, height = (int(value) for value in found if value is not None)
    return (x, y), (width, height)
