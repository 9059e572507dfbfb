"""Maps of the slides of a study, written slide by slide.

::

    MAPS/<slide_id>/thumbnail.png          the slide, or a plain ground, with the annotation's outline
    MAPS/<slide_id>/<run>_<map>.png        one map with title and colour bar
    MAPS/<slide_id>/panel.png              all maps of all runs, one scale a kind of map
    MAPS/<slide_id>/<run>_tiles.csv        raw values of every tile, level-0 pixels
    MAPS/<slide_id>/maps.json              what was drawn from what (written last)
    MAPS/localisation.csv                  scores against the annotation, where there is one
    MAPS/froc.csv                          lesions found against false alarms a slide
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mhim.artefacts import atomic_path, write_json
from mhim.bag import Bag
from mhim.batch import BatchResult, Outcome, console, run_batch
from mhim.errors import ConfigError, FeatureError
from mhim.maps.config import MapConfig, MapKind
from mhim.maps.lattice import Lattice, tile_size_or_step
from mhim.maps.localise import localise, write_localisation
from mhim.maps.panel import NAMES, Caption, bar_image, describe_scale, limit_width, one_map, panel
from mhim.maps.render import Rgb, draw_map, draw_outline
from mhim.maps.scale import Scale
from mhim.maps.stamp import is_current
from mhim.maps.study import RunMaps, Study
from mhim.maps.underlay import Underlay, make_underlay
from mhim.maps.values import WHY_MISSING, TileValues, tile_table
from mhim.training.runs import Run, write_table

PANEL_COLUMN_PX = 380
SMOOTH_NOTICE = "colours between tile centres are interpolated; the tables hold the raw values"


@dataclass(frozen=True)
class SlideMaps:
    """Everything that the pictures of one slide show.

    Attributes:
        slide_id: the slide.
        bag: its tiles.
        tile_px0: side of a tile, level-0 pixels.
        lattice: where the tiles lie.
        underlay: what lies below.
        values: by slug of the run.
        scales: by kind of map, shared by all runs; only kinds that some model has.
        notices: what the reader has to know.
        smooth: whether colours between tile centres are interpolated.
    """

    slide_id: str
    bag: Bag
    tile_px0: float
    lattice: Lattice
    underlay: Underlay
    values: dict[str, TileValues]
    scales: dict[MapKind, Scale]
    notices: tuple[str, ...]
    smooth: bool = False

    def picture(self, run: str, kind: MapKind) -> Rgb | None:
        """(h, w, 3) uint8 of one map, None when the run's model does not have it."""
        values = self.values[run].of(kind)
        if values is None:
            return None
        return draw_map(self.underlay, self.lattice, values, self.scales[kind], self.smooth)


def slide_maps(study: Study, slide_id: str, config: MapConfig) -> SlideMaps:
    """Compute the maps of a slide by all runs; nothing is written.

    Raises:
        FeatureError: no bag, no coordinates, no tile size, or a bag that is not the one the run scored.
        ConfigError: no model has any of the wanted maps.
    """
    bags = {source.slug: source.bag(slide_id) for source in study.runs}
    bag = next(iter(bags.values()))
    path = study.runs[0].bag_path(slide_id)
    if bag.xy_px0 is None:
        raise FeatureError(f"{path}: no coordinates ('coords'), so its tiles have no place; encode again with them")
    if any(other.xy_px0 is None or not np.array_equal(other.xy_px0, bag.xy_px0) for other in bags.values()):
        raise FeatureError(f"{path}: the runs were made from bags with other tiles; map them separately")
    tile_px0, guessed = tile_size_or_step(bag.xy_px0, bag.tile_size_px0, path)
    lattice = Lattice.of_tiles(bag.xy_px0, tile_px0)
    values = {source.slug: source.values(bags[source.slug], slide_id) for source in study.runs}
    missing = [
        f"no {kind} map for {source.run.config.title}: {WHY_MISSING[kind]}"
        for source in study.runs
        for kind in config.maps
        if values[source.slug].of(kind) is None
    ]
    if len(missing) == len(config.maps) * len(study.runs):
        raise ConfigError("; ".join(missing))
    underlay = make_underlay(bag, study.rows.get(slide_id), lattice, config.max_side_px)
    smoothed = [SMOOTH_NOTICE] if config.smooth else []
    notices = (*([guessed] if guessed else []), *underlay.notices, *missing, *smoothed)
    scales = _scales(values, config, len(study.classes))
    return SlideMaps(slide_id, bag, tile_px0, lattice, underlay, values, scales, notices, config.smooth)


def _scales(values: dict[str, TileValues], config: MapConfig, n_classes: int) -> dict[MapKind, Scale]:
    scales = {}
    for kind in config.maps:
        present = [part for of_run in values.values() if (part := of_run.of(kind)) is not None]
        if present:
            scales[kind] = Scale.fit(kind, present, n_classes, config.opacity, config.least_opacity)
    return scales


def draw_maps(
    runs: Sequence[Run],
    out: Path,
    config: MapConfig,
    slides: Sequence[str] | None = None,
    overwrite: bool = False,
) -> BatchResult:
    """Draw the maps of tested slides, each by the model of the fold that tested it.

    What is drawn already from the same runs, bags, slides and options is kept.

    Args:
        runs: complete runs that tested the same slides; two or more share scales and a panel.
        out: folder to write.
        config: see :class:`MapConfig`.
        slides: slides to draw; None takes a selection of ``config.max_slides``.
        overwrite: replace maps of another configuration or input.

    Returns:
        What was drawn, kept and failed, by slide.

    Raises:
        CohortError: runs of different classes or slides, or a slide that was not tested.
    """
    study = Study.of(runs, config)
    heard: set[str] = set()

    def work(slide_id: str) -> Outcome:
        identity = {"config_fingerprint": config.look, "input_fingerprint": study.fingerprint(slide_id)}
        if is_current(out / slide_id, "maps.json", identity, "maps", overwrite):
            return Outcome.SKIPPED
        maps = slide_maps(study, slide_id, config)
        for notice in maps.notices:
            if notice not in heard:
                console.print(f"note: {slide_id}: {notice}", highlight=False, markup=False)
                heard.add(notice)
        _write_slide(out / slide_id, study, maps, config, identity)
        return Outcome.DONE

    result = run_batch(study.chosen(config, slides), work, name=lambda slide_id: slide_id, label="mapping")
    found = localise(study, config.maps)
    if not found.table.empty:
        write_localisation(out / "localisation.csv", found.table)
    if not found.froc.empty:
        write_localisation(out / "froc.csv", found.froc)
    return result


def _write_slide(folder: Path, study: Study, maps: SlideMaps, config: MapConfig, identity: dict[str, str]) -> None:
    files, boxes = ["thumbnail.png", "panel.png"], {}
    thumbnail = draw_outline(maps.underlay.rgb, maps.underlay)
    _save(folder / "thumbnail.png", Image.fromarray(thumbnail))
    pictures: dict[tuple[str, MapKind], Rgb] = {}
    for source in study.runs:
        write_table(
            folder / f"{source.slug}_tiles.csv",
            tile_table(maps.bag, maps.tile_px0, maps.values[source.slug], study.classes),
        )
        files.append(f"{source.slug}_tiles.csv")
        for kind, scale in maps.scales.items():
            picture = maps.picture(source.slug, kind)
            if picture is None:
                continue
            pictures[source.slug, kind] = picture
            caption = Caption(f"{maps.slide_id}  {NAMES[kind]}", caption_lines(source, maps.slide_id, study.classes))
            name = f"{source.slug}_{kind}.png"
            unit = describe_scale(scale, *target_in_words([maps.values[source.slug]], study.classes))
            drawn, boxes[name] = one_map(picture, caption, scale, unit)
            _save(folder / name, drawn)
            files.append(name)
    _save(folder / "panel.png", _panel(study, maps, thumbnail, pictures))
    facts = {"files": files, "maps": list(config.maps), "boxes": boxes}
    write_json(folder / "maps.json", _stamp(study, maps, identity) | facts)


def _panel(study: Study, maps: SlideMaps, thumbnail: Rgb, pictures: dict[tuple[str, MapKind], Rgb]) -> Image.Image:
    columns = [[("Slide" if maps.underlay.is_slide else "Tiles", limit_width(thumbnail, PANEL_COLUMN_PX))]]
    bars: list[Image.Image | None] = [None]
    for kind, scale in maps.scales.items():
        drawn = [(source, pictures[source.slug, kind]) for source in study.runs if (source.slug, kind) in pictures]
        columns.append(
            [(f"{NAMES[kind]}: {source.run.config.title}", limit_width(rgb, PANEL_COLUMN_PX)) for source, rgb in drawn]
        )
        unit = describe_scale(scale, *target_in_words([maps.values[s.slug] for s, _ in drawn], study.classes))
        bars.append(bar_image(scale, unit, columns[-1][0][1].shape[1]))
    lines = [line for source in study.runs for line in caption_lines(source, maps.slide_id, study.classes)]
    return panel(Caption(maps.slide_id, (*lines, *maps.notices)), columns, bars)


def target_in_words(values: Sequence[TileValues], classes: tuple[str, ...]) -> tuple[str, bool]:
    """The class that maps with one colour bar speak of, and whether there are two classes in all."""
    targets = {classes[each.class_index] for each in values}
    return targets.pop() if len(targets) == 1 else "the class that each model predicts", len(classes) == 2


def caption_lines(source: RunMaps, slide_id: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Who said what of a slide, in words."""
    said = source.prediction(slide_id)
    index = 1 if len(classes) == 2 else classes.index(said.y_pred)
    known = f"fold {said.fold} (test): true {said.y_true}, predicted {said.y_pred}"
    verdict = f"{known} ({'wrong' if said.is_wrong else 'right'})"
    if said.is_new:
        verdict = f"fold {said.fold}, a slide that the run does not know: predicted {said.y_pred}"
    cut = "" if said.threshold is None else f" (threshold {said.threshold:.3f})"
    return (f"{source.run.config.title}, {verdict}, p({classes[index]}) = {said.probabilities[index]:.3f}{cut}",)


def _stamp(study: Study, maps: SlideMaps, identity: dict[str, str]) -> dict[str, Any]:
    runs = {}
    for source in study.runs:
        said, values = source.prediction(maps.slide_id), maps.values[source.slug]
        runs[source.slug] = {
            "title": source.run.config.title,
            "identity": source.run.info["identity"],
            "fold": said.fold,
            "y_true": said.y_true,
            "y_pred": said.y_pred,
            "map_class": study.classes[values.class_index],
            "probability": values.slide_probabilities[values.class_index],
            "words": " ".join(caption_lines(source, maps.slide_id, study.classes)),
            "score": values.score,
            "bias": values.bias,
        }
    return identity | {
        "slide_id": maps.slide_id,
        "tool": "mhim",
        "runs": runs,
        "scales": {kind: asdict(scale) for kind, scale in maps.scales.items()},
        "units": {
            kind: describe_scale(scale, *target_in_words(_having(maps, kind), study.classes))
            for kind, scale in maps.scales.items()
        },
        "notices": list(maps.notices),
    }


def _having(maps: SlideMaps, kind: MapKind) -> list[TileValues]:
    return [values for values in maps.values.values() if values.of(kind) is not None]


def _save(path: Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", compress_level=1)
