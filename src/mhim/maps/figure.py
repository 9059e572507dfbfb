"""The paper's figure: one slide, the three maps side by side, one row a run, for print."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhim.artefacts import atomic_path
from mhim.errors import ConfigError
from mhim.maps.config import MapConfig
from mhim.maps.draw import SMOOTH_NOTICE, SlideMaps, caption_lines, slide_maps, target_in_words
from mhim.maps.panel import NAMES, describe_scale
from mhim.maps.render import Rgb, draw_bar, draw_outline
from mhim.maps.scale import Scale
from mhim.maps.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": "mhim"},
    ".svg": {"Date": None, "Creator": "mhim"},
}
COLUMN_INCHES, HEAD_INCHES, BAR_INCHES, BAR_SHARE, ROW_GAP_INCHES = 2.6, 0.35, 0.75, 0.9, 0.12
CAPTION_LETTERS, LABEL_INCHES, BAR_COLOURS = 52, 0.2, 256


def write_figure(path: Path, study: Study, slide_id: str, config: MapConfig, dpi: int = 300) -> SlideMaps:
    """Write the slide and its maps: attention | tile probability | contribution, one row a run.

    Runs share one colour scale a map; bars show raw values; the annotation is outlined where there is one.

    Args:
        path: .png, .pdf or .svg; letters stay text in the last two.
        study: the runs, in the order of the rows.
        slide_id: a slide that they tested.
        config: which maps, how large (``max_side_px``).
        dpi: resolution of the pictures on paper.

    Returns:
        What was drawn, with its notices.

    Raises:
        ConfigError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: figures are written as {', '.join(SUFFIXES)}; choose one of these suffixes")
    maps = slide_maps(study, slide_id, config)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "mhim", "pdf.fonttype": 42, "svg.fonttype": "none"}), atomic_path(path) as place:
        figure = draw_figure(study, maps)
        figure.savefig(place, format=suffix[1:], dpi=dpi, metadata=SUFFIXES[suffix], facecolor="white")
    return maps


def draw_figure(study: Study, maps: SlideMaps) -> Figure:
    """The figure of a slide, not yet written."""
    from matplotlib.figure import Figure

    thumbnail = draw_outline(maps.underlay.rgb, maps.underlay)
    kinds = list(maps.scales)
    row_inches = COLUMN_INCHES * thumbnail.shape[0] / thumbnail.shape[1] + ROW_GAP_INCHES
    rows, columns = len(study.runs), 1 + len(kinds)
    width, height = COLUMN_INCHES * columns + LABEL_INCHES, HEAD_INCHES + row_inches * rows + BAR_INCHES
    figure = Figure(figsize=(width, height))

    def axes(row: int, column: int) -> Any:
        bottom = BAR_INCHES + (rows - 1 - row) * row_inches + ROW_GAP_INCHES / 2
        box = (_left(column) + 0.06, bottom, COLUMN_INCHES - 0.12, row_inches - ROW_GAP_INCHES)
        return figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))

    _show(axes(0, 0), thumbnail, "Slide" if maps.underlay.is_slide else "Tiles")
    for row, source in enumerate(study.runs):
        for column, kind in enumerate(kinds, start=1):
            picture = maps.picture(source.slug, kind)
            place = axes(row, column)
            _show(place, picture, NAMES[kind] if row == 0 else None)
            if column == 1:
                place.set_ylabel(source.run.config.title, fontsize=9)
    for column, kind in enumerate(kinds, start=1):
        target = target_in_words([v for v in maps.values.values() if v.of(kind) is not None], study.classes)
        left = _left(column) + COLUMN_INCHES * (1 - BAR_SHARE) / 2
        span = COLUMN_INCHES * BAR_SHARE
        bar = figure.add_axes((left / width, (BAR_INCHES - 0.2) / height, span / width, 0.09 / height))
        _draw_bar(figure, bar, maps.scales[kind], describe_scale(maps.scales[kind], *target))
    lines = [line for source in study.runs for line in caption_lines(source, maps.slide_id, study.classes)]
    lines += [SMOOTH_NOTICE] if maps.smooth else []
    words = "\n".join(textwrap.fill(line, CAPTION_LETTERS) for line in [maps.slide_id, *lines])
    below = BAR_INCHES + (rows - 1) * row_inches - (0.05 if rows > 1 else 0)
    figure.text(0.06 / width, below / height, words, fontsize=6, va="top", linespacing=1.5)
    return figure


def _left(column: int) -> float:
    """Left edge of a column; the runs' names stand between the slide and the maps."""
    return column * COLUMN_INCHES + (LABEL_INCHES if column else 0)


def _show(axes: Any, picture: Rgb | None, title: str | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if picture is None:
        axes.text(0.5, 0.5, "no such map", ha="center", va="center", fontsize=8, transform=axes.transAxes)
    else:
        axes.imshow(picture, interpolation="none")
    if title is not None:
        axes.set_title(title, fontsize=10)


def _draw_bar(figure: Figure, axes: Any, scale: Scale, unit: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap(draw_bar(scale, BAR_COLOURS, 1)[0] / 255)  # as opaque as the map is
    mappable = ScalarMappable(Normalize(scale.low, scale.high), colours)
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", ticks=scale.ticks())
    bar.ax.set_xticklabels([scale.text(value) for value in scale.ticks()], fontsize=7)
    bar.ax.set_xlabel(unit, fontsize=6)
    if scale.mark is not None:
        bar.ax.axvline(scale.mark, color="black", linewidth=1)
