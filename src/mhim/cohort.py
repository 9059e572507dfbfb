"""The cohort table: one row per slide, with its case and its label, or its case's follow-up."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mhim.errors import CohortError

REQUIRED = ("slide_id", "case_id", "label")
FOLLOW_UP = ("slide_id", "case_id", "time", "event")
OPTIONAL = ("path", "mpp", "site", "time", "event", "fold", "annotation", "tissue_mask")
SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"
)  # fmt: skip
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


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
        tissue_mask: file of the tissue (GeoJSON or image of the whole slide, non-zero = tissue), or None to find it.
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
    tissue_mask: Path | None = None


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

    def outcome(self, row: SlideRow) -> str | None:
        """What training learns about a slide, as text; part of what identifies the data."""
        return row.label

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


@dataclass(frozen=True)
class SurvivalCohort(Cohort):
    """The slides of a survival study: every case has one follow-up time, and either an event or none until then.

    ``classes`` are "censored" and "event", by which cases are counted and split; labels are not read.
    """

    def label_index(self, row: SlideRow) -> int:
        """1 for an event, 0 for a censored case."""
        return int(row.event or 0)

    def outcome(self, row: SlideRow) -> str | None:
        """Time and event."""
        return f"{row.time!r} {self.classes[self.label_index(row)]}"

    def case_times(self) -> dict[str, float]:
        """Follow-up time of each case, in order of first appearance."""
        return {row.case_id: row.time for row in self.rows if row.time is not None}


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


def read_survival_cohort(path: Path) -> SurvivalCohort:
    """The cohort with follow-up in a CSV file: ``time`` in any unit, ``event`` 1 where it was seen, 0 where censored.

    Raises:
        CohortError: missing file or column, repeated slide, missing or negative time, an event other than 0 or 1,
            slides of one case that disagree, or no event at all.
    """
    rows = _read_rows(path, FOLLOW_UP)
    first: dict[str, SlideRow] = {}
    for row in rows:
        for name, value in (("time", row.time), ("event", row.event)):
            if value is None:
                raise CohortError(
                    f"{path}: slide {row.slide_id} has no {name}; fill the column '{name}' or remove the row"
                )
        other = first.setdefault(row.case_id, row)
        if (row.time, row.event) != (other.time, other.event):
            raise CohortError(
                f"{path}: slides {other.slide_id} and {row.slide_id} of case {row.case_id} differ in time or event; "
                f"a case has one follow-up"
            )
    if not any(row.event for row in rows):
        raise CohortError(f"{path}: no case has an event (event is 0 in every row); survival needs events")
    return SurvivalCohort(str(path), tuple(rows), ("censored", "event"))


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
        looked_for = " ".join(SLIDE_SUFFIXES + PICTURE_SUFFIXES)
        raise CohortError(f"{source}: no slides here (looked for {looked_for})")
    rows = [SlideRow(slide_name(file), slide_name(file), path=file) for file in files]
    _refuse_repeats(source, [row.slide_id for row in rows])
    return rows


def slide_name(path: Path) -> str:
    """File name without its slide suffix; dots inside the name stay (TCGA), ``.ome.tif`` goes as one."""
    return re.sub(r"(\.ome)?\.[A-Za-z]{2,7}$", "", path.name) if path.is_file() else path.name


def _slide_files(folder: Path) -> list[Path]:
    """Slide files, and folders that hold the DICOM files of one slide; hidden files are not slides.

    Pictures (PNG, JPEG) count where the folder holds nothing else: beside slides they are labels and previews.
    """
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    slides = [
        entry
        for entry in entries
        if (_holds_dicom(entry) if entry.is_dir() else entry.suffix.lower() in SLIDE_SUFFIXES)
    ]
    return slides or [entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES and entry.is_file()]


def _holds_dicom(folder: Path) -> bool:
    return any(member.suffix.lower() == ".dcm" for member in folder.iterdir())


def read_table(path: Path, fix: str = "") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and (line number, record) of each row of a CSV file; every cell is text, stripped.

    Nothing is guessed: "001", "NA" and "None" stay as they are. Blank lines and columns without a name
    are left out.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        fix: what to do when it is missing.

    Raises:
        CohortError: missing or unreadable file, a column that appears twice, or a row with another number
            of cells than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True, skipinitialspace=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError:
        raise CohortError(f"{path}: no such table{fix and '; '}{fix}") from None
    except UnicodeDecodeError:
        raise CohortError(f"{path}: not a readable CSV table (not UTF-8); save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise CohortError(f"{path}: not a readable CSV table ({error})") from None
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [(number, cells) for number, cells in lines if any(cells)]
    columns = lines[0][1] if lines else []
    for column in columns:
        if column and columns.count(column) > 1:
            raise CohortError(f"{path}: column '{column}' appears twice; keep one")
    for number, cells in lines[1:]:
        if len(cells) != len(columns):
            raise CohortError(f"{path} line {number}: {len(cells)} cells, but the header has {len(columns)} columns")
    named = [(index, column) for index, column in enumerate(columns) if column]
    return [column for _, column in named], [(n, {key: cells[i] for i, key in named}) for n, cells in lines[1:]]


def _read_rows(path: Path, required: Sequence[str]) -> list[SlideRow]:
    columns, records = read_table(path)
    missing = [column for column in required if column not in columns]
    if missing and len(columns) == 1 and ";" in columns[0]:
        raise CohortError(f"{path}: the columns look separated by semicolons; save the table with commas")
    if "event" in missing and {"censorship", "Status"} & set(columns):
        raise CohortError(
            f"{path}: no columns time and event (found: {', '.join(columns)}); rename them, with event = 1 where the "
            f"event was seen (censorship counts the other way round: event = 1 - censorship)"
        )
    if missing:
        raise CohortError(f"{path}: missing column {', '.join(missing)} (found: {', '.join(columns) or 'nothing'})")
    if not records:
        raise CohortError(f"{path}: the table has no rows")
    rows = [_row(path, line, record) for line, record in records]
    _refuse_repeats(path, [row.slide_id for row in rows])
    return rows


def _row(path: Path, line: int, record: Mapping[str, str]) -> SlideRow:
    text = {key: value or None for key, value in record.items()}
    slide_id = text.get("slide_id")
    if slide_id is None:
        raise CohortError(f"{path} line {line}: empty slide_id")
    if "/" in slide_id or "\\" in slide_id:
        raise CohortError(f"{path} line {line}: slide_id '{slide_id}' holds a path separator; give the bare name")
    if "case_id" in record and text["case_id"] is None:
        raise CohortError(f"{path} line {line}: slide {slide_id} has no case_id")
    fold, event = _number(path, line, text, "fold"), _number(path, line, text, "event")
    mpp, time = _number(path, line, text, "mpp"), _number(path, line, text, "time")
    _require(fold is None or fold == int(fold) >= 0, path, line, f"fold {text.get('fold')} is not a whole number")
    _require(event in (None, 0, 1), path, line, f"event {text.get('event')} is neither 1 (event) nor 0 (censored)")
    _require(mpp is None or mpp > 0, path, line, f"mpp {text.get('mpp')} is not positive")
    _require(time is None or time >= 0, path, line, f"time {text.get('time')} is negative")
    return SlideRow(
        slide_id=slide_id,
        case_id=text.get("case_id") or slide_id,
        label=text.get("label"),
        path=_relative(path, text.get("path")),
        mpp=mpp,
        site=text.get("site"),
        time=time,
        event=None if event is None else int(event),
        fold=None if fold is None else int(fold),
        annotation=_relative(path, text.get("annotation")),
        tissue_mask=_relative(path, text.get("tissue_mask")),
    )


def _relative(table: Path, text: str | None) -> Path | None:
    return None if text is None else (table.parent / text)


def _number(path: Path, line: int, text: dict[str, str | None], key: str) -> float | None:
    value = text.get(key)
    if value is None:
        return None
    number = _finite(value)
    if number is None:
        raise CohortError(f"{path} line {line}: {key} '{value}' is not a number")
    return number


def _finite(text: str) -> float | None:
    """The number that a text writes, or None; "nan" and "inf" are words here."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _require(holds: bool, path: Path, line: int, fault: str) -> None:
    if not holds:
        raise CohortError(f"{path} line {line}: {fault}")


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
    number = _finite(name)
    return (1, 0.0, name) if number is None else (0, number, name)
