"""The cohort table: one row per slide, with its case and its label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mhim.errors import CohortError

REQUIRED = ("slide_id", "case_id", "label")
OPTIONAL = ("path", "mpp", "site", "time", "event", "fold", "annotation")
SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"
)  # fmt: skip


@dataclass(frozen=True)
class SlideRow:
    """One slide of a cohort.

    Attributes:
        slide_id: unique name.
        case_id: owner of one or more slides; the unit that is split.
        label: class name as written in the table, or None in a table without labels.
        path: slide file, or None when only features exist.
        mpp: micrometres per level-0 pixel for a slide whose file does not say, or None.
        site: where the slide comes from, or None.
        time, event: follow-up time and event flag (1 = event), or None.
        fold: test fold given by the table, or None.
        annotation: image file of the annotated region (non-zero = inside), or None.
    """

    slide_id: str
    case_id: str
    label: str | None = None
    path: Path | None = None
    mpp: float | None = None
    site: str | None = None
    time: float | None = None
    event: int | None = None
    fold: int | None = None
    annotation: Path | None = None


@dataclass(frozen=True)
class Cohort:
    """The slides of a study, in table order, and its classes in index order.

    Classes are ordered by value when they are numbers, else alphabetically; the last one counts as
    positive in a two-class task. The order is stored with every run.
    """

    source: str
    rows: tuple[SlideRow, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SlideRow]:
        return iter(self.rows)

    def label_index(self, row: SlideRow) -> int:
        """Class index of a slide."""
        if row.label is None:
            raise CohortError(f"{self.source}: slide {row.slide_id} has no label; fill the column 'label'")
        return self.classes.index(row.label)

    def case_labels(self) -> dict[str, int]:
        """Highest class index over the slides of each case, in order of first appearance."""
        labels: dict[str, int] = {}
        for row in self.rows:
            labels[row.case_id] = max(labels.get(row.case_id, 0), self.label_index(row))
        return labels

    def of_cases(self, cases: Sequence[str]) -> list[SlideRow]:
        """The slides of the given cases, in table order."""
        wanted = set(cases)
        return [row for row in self.rows if row.case_id in wanted]


def read_cohort(path: Path) -> Cohort:
    """The labelled cohort in a CSV file.

    Raises:
        CohortError: missing file or column, repeated slide, empty label, or fewer than two classes.
    """
    rows = _read_rows(path, REQUIRED)
    for row in rows:
        if row.label is None:
            raise CohortError(f"{path}: slide {row.slide_id} has no label; fill the column 'label' or remove the row")
    classes = tuple(sorted({str(row.label) for row in rows}, key=_class_order))
    if len(classes) < 2:
        raise CohortError(f"{path}: only one class ({', '.join(classes)}); a classifier needs slides of at least two")
    return Cohort(str(path), tuple(rows), classes)


def read_slides(source: Path) -> list[SlideRow]:
    """Slides to be read, from a CSV file with ``slide_id`` and ``path``, a folder of slides, or one slide file.

    Labels are not needed here. Relative paths in a table count from the table's folder.

    Raises:
        CohortError: nothing there, no slide in the folder, repeated slide names, or no column ``path``.
    """
    if not source.exists():
        raise CohortError(f"{source}: no such file or folder; give a cohort table, a folder of slides or a slide")
    if source.suffix.lower() == ".csv":
        rows = _read_rows(source, ("slide_id", "path"))
        for row in rows:
            if row.path is None:
                raise CohortError(f"{source}: slide {row.slide_id} has no path; fill the column 'path'")
        return rows
    files = _slide_files(source) if source.is_dir() else [source]
    if not files:
        raise CohortError(f"{source}: no slides here (looked for {' '.join(SLIDE_SUFFIXES)})")
    rows = [SlideRow(slide_name(file), slide_name(file), path=file) for file in files]
    _refuse_repeats(source, [row.slide_id for row in rows])
    return rows


def slide_name(path: Path) -> str:
    """File name without its slide suffix; dots inside the name stay (TCGA), ``.ome.tif`` goes as one."""
    return re.sub(r"(\.ome)?\.[A-Za-z]{2,7}$", "", path.name) if path.is_file() else path.name


def _slide_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            members = sorted(entry.glob("*.dcm"))
            found += members[:1]
        elif entry.suffix.lower() in SLIDE_SUFFIXES:
            found.append(entry)
    return found


def _read_rows(path: Path, required: Sequence[str]) -> list[SlideRow]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise CohortError(f"{path}: no such cohort table") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: not a readable CSV table ({error})") from None
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise CohortError(f"{path}: missing column {', '.join(missing)} (found: {', '.join(table.columns)})")
    if table.empty:
        raise CohortError(f"{path}: the table has no rows")
    rows = [_row(path, number, record) for number, record in enumerate(table.to_dict("records"), start=2)]
    _refuse_repeats(path, [row.slide_id for row in rows])
    return rows


def _row(path: Path, line: int, record: dict[str, str]) -> SlideRow:
    text = {key: value.strip() or None for key, value in record.items()}
    slide_id = text.get("slide_id")
    if slide_id is None:
        raise CohortError(f"{path} line {line}: empty slide_id")
    if "/" in slide_id or "\\" in slide_id:
        raise CohortError(f"{path} line {line}: slide_id '{slide_id}' holds a path separator; give the bare name")
    if "case_id" in record and text["case_id"] is None:
        raise CohortError(f"{path} line {line}: slide {slide_id} has no case_id")
    fold, event = _number(path, line, text, "fold"), _number(path, line, text, "event")
    return SlideRow(
        slide_id=slide_id,
        case_id=text.get("case_id") or slide_id,
        label=text.get("label"),
        path=_relative(path, text.get("path")),
        mpp=_number(path, line, text, "mpp"),
        site=text.get("site"),
        time=_number(path, line, text, "time"),
        event=None if event is None else int(event),
        fold=None if fold is None else int(fold),
        annotation=_relative(path, text.get("annotation")),
    )


def _relative(table: Path, text: str | None) -> Path | None:
    return None if text is None else (table.parent / text)


def _number(path: Path, line: int, text: dict[str, str | None], key: str) -> float | None:
    value = text.get(key)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        raise CohortError(f"{path} line {line}: {key} '{value}' is not a number") from None


def _refuse_repeats(source: object, names: Sequence[str]) -> None:
    seen: set[str] = set()
    repeated: list[str] = []
    for name in names:
        if name in seen:
            repeated.append(name)
        seen.add(name)
    if repeated:
        raise CohortError(f"{source}: slide {repeated[0]} appears more than once ({len(repeated)} such); keep one row")


def _class_order(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
