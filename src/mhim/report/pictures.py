"""Map panels for the page: from a folder of maps, or drawn for the occasion."""

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
from mhim.maps import KINDS, MapConfig, draw_maps, telling
from mhim.maps.localise import read_froc, read_localisation
from mhim.maps.study import Prediction, read_test_predictions
from mhim.report.config import ReportConfig
from mhim.report.tile_rows import TileCutter, TileRow, as_uri
from mhim.training.runs import Run


@dataclass(frozen=True)
class SlidePicture:
    """The panel of one slide.

    Attributes:
        slide_id: the slide.
        uri: WebP data URI.
        size_px: (w, h).
        words: what the picture shows, for those who do not see it.
        notices: what the reader has to know.
        tiles: its telling tiles by the last run; empty where the slide file is not there.
    """

    slide_id: str
    uri: str
    size_px: tuple[int, int]
    words: str
    notices: tuple[str, ...]
    tiles: tuple[TileRow, ...]

    @property
    def n_bytes(self) -> int:
        """Size on the page."""
        return len(self.uri) + sum(len(tile.uri) for row in self.tiles for tile in row.tiles)


@dataclass(frozen=True)
class Gallery:
    """Panels and tiles by group (wrong, least certain, most certain), localisation scores, and what is missing."""

    groups: dict[str, list[SlidePicture]] = field(default_factory=dict)
    localisation: pd.DataFrame = field(default_factory=pd.DataFrame)
    froc: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()


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
    try:
        with Image.open(folder / "panel.png") as image:
            panel = image.convert("RGB")
    except OSError:
        raise ArtefactError(f"{folder}/panel.png: missing or not an image; run the same 'mhim heatmap' again") from None
    if panel.width > config.picture_px:
        height = round(panel.height * config.picture_px / panel.width)
        panel = panel.resize((config.picture_px, height), Image.Resampling.LANCZOS)
    said = "; ".join(
        f"{entry['title']}: true {entry['y_true']}, predicted {entry['y_pred']}, "
        f"probability of {entry['map_class']} {entry['probability']:.3f}"
        for entry in stamp["runs"].values()
    )
    kinds = ", ".join(kind for kind in KINDS if kind in stamp["scales"])
    words = f"Slide {stamp['slide_id']} with maps of {kinds}. {said}."
    uri = as_uri(panel, config.picture_quality)
    return SlidePicture(stamp["slide_id"], uri, panel.size, words, tuple(stamp["notices"]), tiles)
