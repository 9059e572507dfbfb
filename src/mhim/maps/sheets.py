"""Contact sheets: the tiles that speak most for a class and most against it, at native resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mhim.artefacts import atomic_path
from mhim.bag import Bag
from mhim.batch import progress_bar
from mhim.errors import ConfigError, SlideError
from mhim.maps.lattice import tile_size_or_step
from mhim.maps.panel import Caption, sheet
from mhim.maps.study import RunMaps, Study
from mhim.maps.underlay import slide_path
from mhim.training.runs import write_table

LARGEST_TILE_PX = 512


@dataclass(frozen=True)
class RankedTile:
    """One tile of a sheet.

    Attributes:
        slide_id: its slide.
        index: its row in the bag.
        xy_px0: top-left corner, level-0 pixels.
        score: class probability of the tile alone.
        attention: its attention, or None.
    """

    slide_id: str
    index: int
    xy_px0: tuple[int, int]
    score: float
    attention: float | None


@dataclass(frozen=True)
class ClassTiles:
    """The highest and the lowest tiles of a class, best first."""

    class_name: str
    top: tuple[RankedTile, ...]
    bottom: tuple[RankedTile, ...]


def rank_tiles(
    scores: Sequence[NDArray[np.float64]], count: int, per_slide: int, highest: bool
) -> list[tuple[int, int]]:
    """(slide, tile) of the ``count`` highest or lowest scores, at most ``per_slide`` of one slide.

    Equal scores keep the order of slides and tiles.

    Args:
        scores: one (N,) array a slide.
        count: how many in all.
        per_slide: how many of one slide at most.
        highest: the highest, else the lowest.
    """
    sign = -1 if highest else 1
    found: list[tuple[float, int, int]] = []
    for slide, values in enumerate(scores):
        order = np.argsort(sign * values, kind="stable")[:per_slide]
        found += [(sign * float(values[tile]), slide, int(tile)) for tile in order]
    return [(slide, tile) for _, slide, tile in sorted(found)[:count]]


def ranked_tiles(source: RunMaps, slides: Sequence[str], count: int, per_slide: int) -> list[ClassTiles]:
    """The highest and lowest tiles of every class over some slides, by the models that never saw them.

    Raises:
        ConfigError: the model scores no single instance, or a bag has no coordinates.
    """
    bags: list[Bag] = []
    attention: list[NDArray[np.float64] | None] = []
    scores: list[NDArray[np.float64]] = []
    with progress_bar(transient=True) as progress:
        task = progress.add_task(f"ranking tiles of {source.run.config.title}", total=len(slides))
        for slide_id in slides:
            bag = source.bag(slide_id)
            values = source.values(bag, slide_id)
            if values.probabilities is None:
                raise ConfigError(f"{source.run.config.title}: scores no single instance, so its tiles have no order")
            if bag.xy_px0 is None:
                raise ConfigError(f"{source.bag_path(slide_id)}: no coordinates ('coords'), so its tiles have no place")
            bags.append(Bag(bag.slide_id, bag.features[:0], bag.xy_px0, bag.attributes))
            scores.append(values.probabilities)
            attention.append(values.attention)
            progress.advance(task)

    def tiles(class_index: int, highest: bool) -> tuple[RankedTile, ...]:
        chosen = rank_tiles([values[:, class_index] for values in scores], count, per_slide, highest)
        ranked = []
        for slide, tile in chosen:
            xy_px0, weights = bags[slide].xy_px0, attention[slide]
            assert xy_px0 is not None
            corner = (int(xy_px0[tile, 0]), int(xy_px0[tile, 1]))
            weight = None if weights is None else float(weights[tile])
            ranked.append(RankedTile(slides[slide], tile, corner, float(scores[slide][tile, class_index]), weight))
        return tuple(ranked)

    return [ClassTiles(name, tiles(index, True), tiles(index, False)) for index, name in enumerate(source.run.classes)]


def read_tiles(study: Study, source: RunMaps, tiles: Sequence[RankedTile]) -> list[NDArray[np.uint8] | None]:
    """The pixels (h, w, 3) of tiles at the scale that the encoder saw; None where the slide file is not there.

    Raises:
        SlideError: a slide cannot be read.
    """
    from mhim.slides import open_slide

    pictures: dict[RankedTile, NDArray[np.uint8]] = {}
    for slide_id in dict.fromkeys(tile.slide_id for tile in tiles):
        bag = source.bag(slide_id)
        row = study.rows.get(slide_id)
        path, _ = slide_path(bag, row)
        if path is None or bag.xy_px0 is None:
            continue
        tile_px0, _ = tile_size_or_step(bag.xy_px0, bag.tile_size_px0, source.bag_path(slide_id))
        mpp = (row.mpp if row is not None else None) or bag.attributes.get("slide_mpp")
        with open_slide(path, slide_id, float(mpp) if mpp else 1.0) as slide:
            wanted = bag.attributes.get("mpp")
            scale = float(wanted) if wanted and mpp else slide.mpp0
            side = round(tile_px0 * slide.mpp0 / scale)
            if side > LARGEST_TILE_PX:
                scale, side = scale * side / LARGEST_TILE_PX, LARGEST_TILE_PX
            for tile in tiles:
                if tile.slide_id == slide_id:
                    pictures[tile] = slide.read(tile.xy_px0, (side, side), scale)
    return [pictures.get(tile) for tile in tiles]


def write_sheets(
    study: Study, out: Path, slides: Sequence[str], count: int = 12, per_slide: int = 3
) -> dict[Path, int]:
    """Write ``<run>_<class>.png``, a contact sheet, and ``<run>_<class>.csv``, its list, for every run and class.

    Args:
        study: the runs.
        out: folder to write.
        slides: slides whose tiles take part.
        count: tiles at each end.
        per_slide: at most so many of one slide at each end.

    Returns:
        Sheet -> tiles on it whose slide file was there.

    Raises:
        SlideError: no slide file of any tile is there.
    """
    written: dict[Path, int] = {}
    for source in study.runs:
        for ranked in ranked_tiles(source, slides, count, per_slide):
            tiles = [*ranked.top, *ranked.bottom]
            pictures = read_tiles(study, source, tiles)
            if not any(picture is not None for picture in pictures):
                raise SlideError("no slide file is there to cut tiles from; give --cohort with the column 'path'")
            target = out / f"{source.slug}_{ranked.class_name}"
            _write(target, source, ranked, pictures)
            written[target.with_suffix(".png")] = sum(picture is not None for picture in pictures)
    return written


def _write(target: Path, source: RunMaps, ranked: ClassTiles, pictures: Sequence[NDArray[np.uint8] | None]) -> None:
    ends = [("highest", tile) for tile in ranked.top] + [("lowest", tile) for tile in ranked.bottom]
    records = [
        {
            "end": end,
            "rank": (number if end == "highest" else number - len(ranked.top)) + 1,
            "slide_id": tile.slide_id,
            "true": source.prediction(tile.slide_id).y_true,
            "x_px0": tile.xy_px0[0],
            "y_px0": tile.xy_px0[1],
            "probability": tile.score,
            "attention": tile.attention,
        }
        for number, (end, tile) in enumerate(ends)
    ]
    write_table(target.with_name(f"{target.name}.csv"), pd.DataFrame(records))
    words = [f"{r['probability']:.4f}  {r['slide_id']}  ({r['true'] or 'new'})" for r in records]
    drawn = list(zip(words, pictures, strict=True))
    split = len(ranked.top)
    caption = Caption(
        f"{source.run.config.title}: tiles for and against {ranked.class_name}",
        ("tile probability, slide (its true label); every tile by the model that never saw its slide",),
    )
    rows = [("highest", drawn[:split]), ("lowest", drawn[split:])]
    with atomic_path(target.with_name(f"{target.name}.png")) as temporary:
        sheet(caption, rows).save(temporary, format="PNG", compress_level=4)
