"""The sheet of a tiled cohort: one line and one picture per slide, and which slides stand out, and why.

A slide stands out where a value lies more than 3.5 robust deviations from the cohort's median (Iglewicz
and Hoaglin 1993: 0.6745 (x - median) / MAD); shares and counts are compared on a logarithmic scale.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mhim.artefacts as artefacts
from mhim.tile_io import jpeg_bytes, load_grid
from mhim.tile_preview import draw_preview
from mhim.tiles import TileGrid

LIMIT = 3.5
FEWEST_SLIDES = 5
CELL_PX, CELLS_ACROSS, MOST_PICTURES = 200, 6, 300


@dataclass(frozen=True)
class Measure:
    """One number of a slide that is compared over the cohort.

    Attributes:
        label: how the sheet calls it.
        is_log: whether it is compared on a logarithmic scale.
        least_spread: deviations are not taken smaller than this (in the compared scale), so that a very
            even cohort flags nothing that is the same to the eye.
    """

    label: str
    is_log: bool
    least_spread: float


MEASURES: dict[str, Measure] = {
    "tissue_share": Measure("share of tissue", True, 0.15),
    "tissue_mm2": Measure("tissue area in mm2", True, 0.15),
    "n_tiles": Measure("number of tiles", True, 0.15),
    "rejected_share": Measure("share left out as ink or blur", False, 0.02),
    "red": Measure("red of the tissue", False, 5.0),
    "green": Measure("green of the tissue", False, 5.0),
    "blue": Measure("blue of the tissue", False, 5.0),
    "glass": Measure("brightness of the glass", False, 3.0),
}


@dataclass(frozen=True)
class SheetRow:
    """What the sheet says about one slide.

    Attributes:
        slide_id: the slide's name.
        values: by name of the measure; NaN where it cannot be taken.
        flags: one sentence for each value that stands out.
    """

    slide_id: str
    values: Mapping[str, float]
    flags: tuple[str, ...] = ()


def slide_values(grid: TileGrid) -> dict[str, float]:
    """The measures of one slide; colours are medians over the thumbnail, 0 to 255."""
    tissue = grid.tissue
    values = {
        "tissue_share": tissue.fraction,
        "tissue_mm2": float(tissue.cells.sum()) * tissue.um_per_cell**2 * 1e-6,
        "n_tiles": float(len(grid)),
        "rejected_share": 0.0 if tissue.rejected is None else float(tissue.rejected.mean()),
    }
    colours = dict.fromkeys(("red", "green", "blue", "glass"), math.nan)
    if grid.thumbnail is not None:
        inside = _nearest(tissue.cells, grid.thumbnail.shape[:2])
        if inside.any():
            colours.update(zip(("red", "green", "blue"), np.median(grid.thumbnail[inside], axis=0), strict=True))
        if not inside.all():
            colours["glass"] = np.percentile(grid.thumbnail[~inside].min(axis=1), 75)
    return values | {name: float(value) for name, value in colours.items()}


def _nearest(cells: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = (np.arange(shape[axis]) * cells.shape[axis] // shape[axis] for axis in (0, 1))
    return cells[rows[:, None], columns]


def flagged(rows: Sequence[SheetRow]) -> list[SheetRow]:
    """The rows with what stands out about each; nothing does among fewer than five slides."""
    flags: list[list[str]] = [[] for _ in rows]
    if len(rows) >= FEWEST_SLIDES:
        for name, measure in MEASURES.items():
            values = np.array([row.values.get(name, math.nan) for row in rows])
            for index, text in _outliers(values, measure):
                flags[index].append(text)
    return [SheetRow(row.slide_id, row.values, tuple(texts)) for row, texts in zip(rows, flags, strict=True)]


def robust_deviations(values: NDArray[np.float64], least_spread: float = 0.0) -> NDArray[np.float64]:
    """(x - median) / (1.4826 MAD) of each value; NaN stays NaN and does not count.

    >>> robust_deviations(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))[-1].round(1)
    np.float64(65.4)
    """
    if np.isnan(values).all():
        return values.copy()
    middle = np.nanmedian(values)
    spread = max(1.4826 * float(np.nanmedian(np.abs(values - middle))), least_spread)
    return (values - middle) / spread if spread > 0 else np.zeros_like(values)


def _outliers(values: NDArray[np.float64], measure: Measure) -> list[tuple[int, str]]:
    compared = np.log(np.maximum(values, 1e-6)) if measure.is_log else values
    deviations = robust_deviations(compared, measure.least_spread)
    found = np.flatnonzero(np.abs(deviations) > LIMIT)
    middle = float(np.nanmedian(values)) if len(found) else math.nan
    return [
        (
            int(index),
            f"{measure.label} {_short(values[index])}, cohort's median {_short(middle)} "
            f"({abs(deviations[index]):.1f} robust deviations {'above' if deviations[index] > 0 else 'below'})",
        )
        for index in found
    ]


def write_sheet(out: Path, grid_files: Sequence[Path]) -> list[SheetRow]:
    """Write ``out/previews/sheet.csv``, ``sheet.html`` and ``sheet.jpg`` over grid files.

    Returns:
        The rows, in the order of the files.

    Raises:
        FeatureError: a grid file is missing or not complete.
    """
    rows, pictures = [], []
    for path in grid_files:
        grid = load_grid(path)
        rows.append(SheetRow(grid.slide_id, slide_values(grid)))
        if len(pictures) < MOST_PICTURES:
            pictures.append(_cell(draw_preview(grid)))
    rows = flagged(rows)
    folder = out / "previews"
    contents = {
        "sheet.csv": _csv(rows).encode(),
        "sheet.html": _html(rows).encode(),
        "sheet.jpg": jpeg_bytes(_montage(pictures, rows)),
    }
    for name, content in contents.items():
        with artefacts.atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return rows


def _csv(rows: Sequence[SheetRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", *MEASURES, "flags"])
    for row in rows:
        writer.writerow([row.slide_id, *(_short(row.values[name]) for name in MEASURES), "; ".join(row.flags)])
    return text.getvalue()


def _html(rows: Sequence[SheetRow]) -> str:
    """One self-contained page beside the pictures: flagged slides first, then as given."""
    cards = []
    for row in sorted(rows, key=lambda row: -len(row.flags)):
        name, marked = html.escape(row.slide_id), " class=flagged" if row.flags else ""
        flags = "".join(f"<li>{html.escape(flag)}" for flag in row.flags)
        values = ", ".join(f"{measure.label} {_short(row.values[key])}" for key, measure in MEASURES.items())
        cards.append(
            f'<figure{marked}><a href="{name}.jpg"><img loading=lazy src="{name}.jpg" alt="{name}"></a>'
            f"<figcaption><b>{name}</b><ul>{flags}</ul><small>{html.escape(values)}</small></figcaption></figure>"
        )
    outliers = sum(bool(row.flags) for row in rows)
    return (
        "<!doctype html><meta charset=utf-8><title>Tiled slides</title><style>"
        "body{font:14px sans-serif;margin:2em}main{display:flex;flex-wrap:wrap;gap:1em}"
        "figure{width:260px;margin:0;padding:.6em;border:1px solid #ccc}figure.flagged{border:2px solid #c00}"
        "img{max-width:260px;max-height:260px}small{color:#555}li{color:#a00}</style>"
        f"<h1>{len(rows)} slides, {outliers} stand out</h1><p>Green: outline of the tissue. Blue: tiles. Orange: "
        f"left out as ink or blur. A slide stands out where a value lies more than {LIMIT} robust deviations from "
        f"the cohort's median; with fewer than {FEWEST_SLIDES} slides nothing is compared.</p>"
        f"<main>{''.join(cards)}</main>"
    )


def _cell(picture: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """A picture fitted into a square cell on white."""
    import cv2

    cell = np.full((CELL_PX, CELL_PX, 3), 255, dtype=np.uint8)
    if picture is not None:
        scale = (CELL_PX - 8) / max(picture.shape[:2])
        size = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
        small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        cell[4 : 4 + size[1], 4 : 4 + size[0]] = small
    return cell


def _montage(pictures: Sequence[NDArray[np.uint8]], rows: Sequence[SheetRow]) -> NDArray[np.uint8]:
    """Cells in rows of six; slides that stand out have a red frame."""
    across = min(CELLS_ACROSS, max(1, len(pictures)))
    down = max(1, math.ceil(len(pictures) / across))
    sheet = np.full((down * CELL_PX, across * CELL_PX, 3), 255, dtype=np.uint8)
    for index, (picture, row) in enumerate(zip(pictures, rows, strict=False)):
        top, left = index // across * CELL_PX, index % across * CELL_PX
        cell = picture.copy()
        if row.flags:
            cell[:3], cell[-3:], cell[:, :3], cell[:, -3:] = ((200, 0, 0),) * 4
        sheet[top : top + CELL_PX, left : left + CELL_PX] = cell
    return sheet


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
