"""Maps for the page: from a folder of maps, or drawn for the occasion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from PIL import Image

from mhim.artefacts import read_json
from mhim.errors import ArtefactError, MhimError
from mhim.maps import ALL_KINDS, MapConfig, MapKind, Scale, draw_maps, telling
from mhim.maps.localise import read_froc, read_localisation
from mhim.maps.panel import NAMES
from mhim.maps.render import draw_bar
from mhim.maps.study import Prediction, read_test_predictions
from mhim.report.config import ReportConfig
from mhim.report.tile_rows import TileCutter, TileRow, as_uri
from mhim.training.runs import Run

BAR_STOPS = 24


@dataclass(frozen=True)
class MapPicture:
    """One picture: whose, WebP data URI (None: the model has no such map), size in pixels, words for who cannot see."""

    title: str
    uri: str | None = None
    size_px: tuple[int, int] = (1, 1)
    words: str = ""


@dataclass(frozen=True)
class Bar:
    """A colour bar: a CSS gradient, ticks (percent from the left, text), a marked place, and what the numbers are."""

    gradient: str
    ticks: tuple[tuple[float, str], ...]
    mark: float | None
    unit: str


@dataclass(frozen=True)
class MapColumn:
    """One kind of map of a slide by every run, on one colour bar."""

    name: str
    pictures: tuple[MapPicture, ...]
    bar: Bar


@dataclass(frozen=True)
class SlidePicture:
    """The maps of one slide.

    Attributes:
        slide_id: the slide.
        ground: the slide alone.
        columns: its maps, one column a kind.
        verdicts: what each run said, one line each.
        notices: what the reader has to know.
        tiles: its telling tiles by the last run; empty where the slide file is not there.
    """

    slide_id: str
    ground: MapPicture
    columns: tuple[MapColumn, ...]
    verdicts: tuple[str, ...]
    notices: tuple[str, ...]
    tiles: tuple[TileRow, ...]

    @property
    def n_bytes(self) -> int:
        """Size on the page."""
        maps = [picture.uri or "" for column in self.columns for picture in column.pictures]
        tiles = [tile.uri for row in self.tiles for tile in row.tiles]
        return sum(map(len, [self.ground.uri or "", *maps, *tiles]))


@dataclass(frozen=True)
class Gallery:
    """Maps and tiles by group (wrong, least certain, most certain), localisation scores, and what is missing."""

    groups: dict[str, list[SlidePicture]] = field(default_factory=dict)
    localisation: pd.DataFrame = field(default_factory=pd.DataFrame)
    froc: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()

    @property
    def anchors(self) -> dict[str, str]:
        """Slide -> id of its maps on the page."""
        shown = [picture.slide_id for pictures in self.groups.values() for picture in pictures]
        return {slide_id: f"slide-{number}" for number, slide_id in enumerate(shown, start=1)}


def make_gallery(runs: Sequence[Run], maps: Path | None, config: ReportConfig) -> Gallery:
    """The telling slides of the last run, as pictures.

    Args:
        runs: the runs of the report.
        maps: folder that ``mhim heatmap`` wrote for these runs; None draws what is needed.
        config: how many slides, and how large.

    Raises:
        ArtefactError: the folder holds no maps, or maps of other runs.
    """
    predictions = read_test_predictions(runs[-1])
    if config.slides == 0 and maps is None:
        return Gallery()
    if maps is not None:
        return _collect(runs, maps, predictions, config, ())
    with _drawn(runs, config) as (folder, notes):
        return _collect(runs, folder, predictions, config, notes)


@contextmanager
def _drawn(runs: Sequence[Run], config: ReportConfig) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A temporary folder of maps, and why some are missing."""
    with TemporaryDirectory(prefix="mhim-report-") as name:
        folder = Path(name)
        try:
            result = draw_maps(runs, folder, MapConfig.model_validate({"max_slides": config.slides}))
        except MhimError as error:
            yield folder, (f"No maps: {error}",)
            return
        reasons = tuple(f"No map of {slide_id}: {reason}" for slide_id, reason in result.failed.items())
        yield folder, reasons[:3] + ((f"and {len(reasons) - 3} more",) if len(reasons) > 3 else ())


def _collect(
    runs: Sequence[Run], folder: Path, predictions: list[Prediction], config: ReportConfig, notes: tuple[str, ...]
) -> Gallery:
    stamps = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/maps.json"))}
    if not stamps and not notes:
        raise ArtefactError(f"{folder}: no maps here; make them with 'mhim heatmap', or leave --maps out")
    for slide_id, stamp in stamps.items():
        _require_runs(folder / slide_id, stamp, runs)
    chosen = telling([p for p in predictions if p.slide_id in stamps], config.slides) if config.slides else {}
    groups: dict[str, list[SlidePicture]] = {}
    used, cutter = 0, TileCutter(runs[-1], config)
    for group, slide_id in [(group, slide_id) for group, slides in chosen.items() for slide_id in slides]:
        picture = _picture(folder / slide_id, stamps[slide_id], config, cutter.rows(slide_id))
        used += picture.n_bytes
        if used > config.max_bytes:
            notes = (*notes, f"Pictures beyond {config.max_bytes / 1e6:.1f} MB are left out.")
            break
        groups.setdefault(group, []).append(picture)
    found, froc = folder / "localisation.csv", folder / "froc.csv"
    return Gallery(
        groups,
        read_localisation(found) if found.is_file() else pd.DataFrame(),
        read_froc(froc) if froc.is_file() else pd.DataFrame(),
        (*notes, *cutter.notes()),
    )


def _require_runs(folder: Path, stamp: dict[str, Any], runs: Sequence[Run]) -> None:
    known = {entry["identity"] for entry in stamp["runs"].values()}
    wanted = {run.info["identity"] for run in runs}
    if not known <= wanted:
        raise ArtefactError(f"{folder}: maps of another run are here; draw them for the runs of this report")


def _picture(folder: Path, stamp: dict[str, Any], config: ReportConfig, tiles: tuple[TileRow, ...]) -> SlidePicture:
    if "boxes" not in stamp:
        raise ArtefactError(f"{folder}: maps of an earlier version; draw them again with 'mhim heatmap --overwrite'")
    slide_id = stamp["slide_id"]
    columns: list[MapColumn] = []
    kinds: list[MapKind] = [kind for kind in ALL_KINDS if kind in stamp["scales"]]
    for kind in kinds:
        pictures = []
        for run, entry in stamp["runs"].items():
            name = f"{run}_{kind}.png"
            words = f"{NAMES[kind]} of {entry['title']} over slide {slide_id}"
            if name in stamp["boxes"]:
                pictures.append(_cut(folder / name, stamp["boxes"][name], config, entry["title"], words))
            else:
                pictures.append(MapPicture(entry["title"]))
        bar = _bar(Scale(**stamp["scales"][kind]), stamp["units"][kind])
        columns.append(MapColumn(NAMES[kind], tuple(pictures), bar))
    ground = _cut(folder / "thumbnail.png", None, config, "Slide", f"Slide {slide_id}")
    verdicts = tuple(entry["words"] for entry in stamp["runs"].values())
    return SlidePicture(slide_id, ground, tuple(columns), verdicts, tuple(stamp["notices"]), tiles)


def _cut(path: Path, box: list[int] | None, config: ReportConfig, title: str, words: str) -> MapPicture:
    """A picture, or a part of it, at most ``config.picture_px`` wide."""
    try:
        with Image.open(path) as image:
            picture = (image if box is None else image.crop((box[0], box[1], box[2], box[3]))).convert("RGB")
    except OSError:
        raise ArtefactError(f"{path}: missing or not an image; run the same 'mhim heatmap' again") from None
    if picture.width > config.picture_px:
        height = max(1, round(picture.height * config.picture_px / picture.width))
        picture = picture.resize((config.picture_px, height), Image.Resampling.LANCZOS)
    return MapPicture(title, as_uri(picture, config.picture_quality), picture.size, words)


def _bar(scale: Scale, unit: str) -> Bar:
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in draw_bar(scale, BAR_STOPS, 1)[0].tolist())

    def percent(value: float) -> float:
        return round(100 * (value - scale.low) / (scale.high - scale.low), 2)

    ticks = tuple((percent(value), scale.text(value)) for value in scale.ticks())
    return Bar(f"linear-gradient(to right,{stops})", ticks, None if scale.mark is None else percent(scale.mark), unit)
