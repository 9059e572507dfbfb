"""Tumour outlines of the CAMELYON16 slides: read from tables, laid exactly over a lattice of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mhim.cohort import read_table
from mhim.errors import CohortError

LIST_TABLE = "mhim_label_c16.csv"
SLIDE_TABLE = "flamby_camelyon16_metadata.csv"
INDEX_TABLE = "camelyon16_tumor_polygons_index.csv"
VERTICES = "camelyon16_tumor_polygons.npz"

Polygon = NDArray[np.float64]


@dataclass(frozen=True)
class SlideMeta:
    """What is known of one slide.

    Attributes:
        slide_id: its name.
        label: 0 normal, 1 tumour.
        site: hospital, ``hospital_0`` or ``hospital_1``.
        part: official part, ``train`` or ``test``.
        tumour_fraction: tumour share of the tissue tiles, or None when not known.
        positive: (n, 2) outlines of tumour, level-0 pixels.
        negative: (n, 2) outlines of what is not tumour: holes on a tumour slide, normal areas on a normal one.
    """

    slide_id: str
    label: int
    site: str
    part: str
    tumour_fraction: float | None
    positive: tuple[Polygon, ...] = ()
    negative: tuple[Polygon, ...] = ()


def read_meta(folder: Path) -> list[SlideMeta]:
    """The slides of the list, ascending by name, with their outlines.

    Args:
        folder: holds ``LIST_TABLE`` (slide, label; no header), ``SLIDE_TABLE`` (slide_name, label,
            tumorp10000, hospital_corrected), ``INDEX_TABLE`` (slide, kind, start, n) and ``VERTICES``
            (``vertices``, (V, 2), level-0 pixels).

    Raises:
        CohortError: a file is missing or damaged, tables disagree on a label, or an outline lies outside the vertices.
    """
    labels = _labels(folder / LIST_TABLE)
    columns, records = read_table(folder / SLIDE_TABLE, "give the folder of the slide tables with --meta")
    _require_columns(folder / SLIDE_TABLE, columns, ("slide_name", "label", "tumorp10000", "hospital_corrected"))
    facts = {record["slide_name"].removesuffix(".tif"): record for _, record in records}
    outlines = _outlines(folder)
    slides = []
    for name, label in sorted(labels.items()):
        if name not in facts:
            raise CohortError(f"{folder / SLIDE_TABLE}: no row for slide {name} of {LIST_TABLE}")
        fact = facts[name]
        if fact["label"] != str(label):
            raise CohortError(f"{folder / SLIDE_TABLE}: slide {name} has label {fact['label']}, {LIST_TABLE}: {label}")
        site = f"hospital_{_number(folder / SLIDE_TABLE, name, fact['hospital_corrected']):.0f}"
        share = _number(folder / SLIDE_TABLE, name, fact["tumorp10000"]) if fact["tumorp10000"] else None
        part = "test" if name.startswith("test_") else "train"
        drawn = {kind: tuple(outlines.get((name, kind), ())) for kind in ("positive", "negative")}
        slides.append(SlideMeta(name, label, site, part, share if label else None, **drawn))
    return slides


def _labels(path: Path) -> dict[str, int]:
    """Slide and label of each line of a table without header."""
    try:
        lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise CohortError(f"{path}: {error.strerror}; give the folder of the slide tables with --meta") from None
    labels = {}
    for line in lines:
        if len(line) != 2 or line[1].strip() not in ("0", "1"):
            raise CohortError(f"{path}: '{','.join(line)}' is not a slide and 0 or 1")
        labels[line[0].strip()] = int(line[1])
    if len(set(labels.values())) < 2:
        raise CohortError(f"{path}: normal and tumour slides are both needed")
    return labels


def _outlines(folder: Path) -> dict[tuple[str, str], list[Polygon]]:
    """Outlines by slide and kind."""
    columns, records = read_table(folder / INDEX_TABLE, "give the folder of the slide tables with --meta")
    _require_columns(folder / INDEX_TABLE, columns, ("slide", "kind", "start", "n"))
    try:
        with np.load(folder / VERTICES, allow_pickle=False) as file:
            vertices = np.asarray(file["vertices"], dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise CohortError(f"{folder / VERTICES}: no array 'vertices' to read ({error})") from None
    if vertices.ndim != 2 or vertices.shape[1] != 2:
        raise CohortError(f"{folder / VERTICES}: 'vertices' has shape {vertices.shape}, expected (vertices, 2)")
    found: dict[tuple[str, str], list[Polygon]] = {}
    for line, record in records:
        start = int(_number(folder / INDEX_TABLE, record["slide"], record["start"]))
        end = start + int(_number(folder / INDEX_TABLE, record["slide"], record["n"]))
        if not 0 <= start < end <= len(vertices):
            raise CohortError(f"{folder / INDEX_TABLE} line {line}: vertices {start} to {end} of {len(vertices)}")
        found.setdefault((record["slide"], record["kind"]), []).append(vertices[start:end])
    return found


def _require_columns(path: Path, columns: list[str], wanted: tuple[str, ...]) -> None:
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise CohortError(f"{path}: missing column {', '.join(missing)} (found: {', '.join(columns) or 'nothing'})")


def _number(path: Path, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CohortError(f"{path}: slide {name}: '{text}' is not a number") from None


def polygon_area(vertices: Polygon) -> float:
    """Area of a polygon that does not cross itself (the shoelace formula), in squared units of the vertices."""
    x, y = (vertices - vertices[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def polygon_coverage(vertices: Polygon, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Share of each unit cell of a lattice that a polygon covers, exact.

    Every edge is cut where it meets the lattice; each piece lies in one cell, adds the area to its right in
    that cell, and its height to all cells right of it (Green's theorem).

    Args:
        vertices: (n, 2) x and y in cells, inside ``[0, columns] x [0, rows]``.
        shape: rows and columns.

    Returns:
        (rows, columns) float64 in [0, 1]; a polygon that winds around a point twice counts it once.
    """
    rows, columns = shape
    start, end = vertices, np.roll(vertices, -1, axis=0)
    edge, place = [np.arange(len(start)), np.arange(len(start))], [np.zeros(len(start)), np.ones(len(start))]
    for axis in (0, 1):
        index, t = _cuts(start[:, axis], end[:, axis])
        edge.append(index)
        place.append(t)
    edges, t = np.concatenate(edge), np.concatenate(place)
    order = np.lexsort((t, edges))
    edges, t = edges[order], np.clip(t[order], 0, 1)
    points = start[edges] + t[:, None] * (end - start)[edges]
    same = edges[1:] == edges[:-1]
    first, second = points[:-1][same], points[1:][same]
    middle, height = (first + second) / 2, second[:, 1] - first[:, 1]
    column = np.clip(np.floor(middle[:, 0]).astype(int), 0, columns - 1)
    row = np.clip(np.floor(middle[:, 1]).astype(int), 0, rows - 1)
    inside = middle[:, 0] - column
    steps = np.zeros((rows, columns + 1))
    np.add.at(steps, (row, column), height * (1 - inside))
    np.add.at(steps, (row, column + 1), height * inside)
    return np.clip(np.abs(np.cumsum(steps, axis=1)[:, :columns]), 0, 1)


def _cuts(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Where edges from a to b meet whole numbers strictly inside: (index of the edge, place in (0, 1))."""
    first = np.floor(np.minimum(a, b)).astype(int) + 1
    count = np.maximum(np.ceil(np.maximum(a, b)).astype(int) - first, 0)
    index = np.repeat(np.arange(len(a)), count)
    line = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    return index, (line - a[index]) / (b - a)[index]


def tumour_coverage(meta: SlideMeta, origin_px0: NDArray[np.int64], pitch_px0: int, shape: tuple[int, int]) -> Polygon:
    """Share of each tile that is tumour: the positive outlines together, less the holes.

    Args:
        meta: a tumour slide.
        origin_px0: (2,) top-left corner of the lattice.
        pitch_px0: side of a tile.
        shape: rows and columns of the lattice, which holds every outline.

    Returns:
        (rows, columns) float64 in [0, 1]. Outlines that overlap inside a tile count at most once over the whole tile.
    """
    total = np.zeros(shape)
    for sign, outlines in ((1.0, meta.positive), (-1.0, meta.negative)):
        for outline in outlines:
            total += sign * polygon_coverage((outline - origin_px0) / pitch_px0, shape)
        total = np.clip(total, 0, 1)
    return total
