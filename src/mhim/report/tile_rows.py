"""The tiles that decided: those with the highest tile probability and those most attended to, cut from the slide."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mhim.bag import Bag
from mhim.errors import MhimError
from mhim.maps import MapConfig, MapKind, Study
from mhim.maps.sheets import RankedTile, rank_tiles, read_tiles
from mhim.maps.underlay import INSIDE
from mhim.maps.values import TileValues
from mhim.report.config import ReportConfig
from mhim.training.runs import Run

FIRST: tuple[MapKind, ...] = ("probability", "contribution")
TITLES: dict[MapKind, str] = {
    "probability": "Highest tile probability of {}",
    "contribution": "Highest contribution to {}",
    "attention": "Highest attention",
    "attention-score": "Highest attention score",
}


@dataclass(frozen=True)
class TilePicture:
    """One tile: WebP data URI, its value, whether it is annotated (None: not known), and words for all of it."""

    uri: str
    value: str
    is_annotated: bool | None
    words: str


@dataclass(frozen=True)
class TileRow:
    """The highest tiles of one map of a slide, best first."""

    title: str
    tiles: tuple[TilePicture, ...]


def as_uri(image: Image.Image, quality: int) -> str:
    """A WebP data URI; equal pixels give equal text."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class TileCutter:
    """Cuts the telling tiles of the slides that a run tested, each by the fold that tested the slide.

    Args:
        run: whose maps rank the tiles.
        config: how many tiles a row (``tiles``), how large (``tile_px``).
    """

    def __init__(self, run: Run, config: ReportConfig) -> None:
        self.study = Study.of([run], MapConfig.model_validate({"max_slides": None}))
        self.config = config
        self.missing: dict[str, str] = {}

    def rows(self, slide_id: str) -> tuple[TileRow, ...]:
        """One row by tile probability (else by contribution), one by attention; why there is none is kept."""
        if self.config.tiles == 0:
            return ()
        try:
            found = self._rows(slide_id)
        except MhimError as error:
            self.missing[slide_id] = str(error)
            return ()
        if not found:
            self.missing.setdefault(slide_id, "its slide file is not there, or its bag has no coordinates")
        return found

    def notes(self) -> tuple[str, ...]:
        """Which slides have no tiles, and why; the first three, then a count."""
        said = [f"No tiles of {slide_id}: {reason}." for slide_id, reason in self.missing.items()]
        return (*said[:3], *([f"No tiles of {len(said) - 3} more slides either."] if len(said) > 3 else []))

    def _rows(self, slide_id: str) -> tuple[TileRow, ...]:
        source = self.study.runs[0]
        bag = source.bag(slide_id)
        values = source.values(bag, slide_id)
        first: list[MapKind] = [kind for kind in FIRST if values.of(kind) is not None]
        kinds: list[MapKind] = first[:1]
        if values.attention is not None:
            kinds.append("attention")
        ranked: dict[MapKind, Sequence[RankedTile]] = {
            kind: _ranked(slide_id, bag, values, kind, self.config.tiles) for kind in kinds
        }
        wanted = list(dict.fromkeys(tile for tiles in ranked.values() for tile in tiles))
        cut = dict(zip(wanted, read_tiles(self.study, source, wanted), strict=True))
        target = self.study.classes[values.class_index]
        found = []
        for kind, tiles in ranked.items():
            pictures = [self._picture(cut[tile], bag, values, tile, kind) for tile in tiles]
            shown = tuple(picture for picture in pictures if picture is not None)
            if shown:
                found.append(TileRow(TITLES[kind].format(target), shown))
        return tuple(found)

    def _picture(
        self, pixels: NDArray[np.uint8] | None, bag: Bag, values: TileValues, tile: RankedTile, kind: MapKind
    ) -> TilePicture | None:
        of_tiles = values.of(kind)
        if pixels is None or of_tiles is None:
            return None
        image = Image.fromarray(pixels)
        if image.width > self.config.tile_px:
            image = image.resize((self.config.tile_px, self.config.tile_px), Image.Resampling.LANCZOS)
        text = f"{of_tiles[tile.index]:#.3g}"
        truth = bag.annotation_fraction
        annotated = None if truth is None else bool(truth[tile.index] >= INSIDE)
        place = f"tile at {tile.xy_px0[0]}, {tile.xy_px0[1]} (level-0 pixels)"
        words = f"{place}, {kind} {text}" + (", annotated" if annotated else "")
        return TilePicture(as_uri(image, self.config.picture_quality), text, annotated, words)


def _ranked(slide_id: str, bag: Bag, values: TileValues, kind: MapKind, count: int) -> Sequence[RankedTile]:
    of_tiles = values.of(kind)
    if of_tiles is None or bag.xy_px0 is None:
        return ()
    order = [index for _, index in rank_tiles([of_tiles], count, count, highest=True)]
    corners = [(int(bag.xy_px0[index, 0]), int(bag.xy_px0[index, 1])) for index in order]
    return [RankedTile(slide_id, index, corner, 0.0, None) for index, corner in zip(order, corners, strict=True)]
