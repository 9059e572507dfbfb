"""Split files of other programs as splits: CLAM, STAMP, Patho-Bench, MHIM, and tables with one column of parts.

Slides are turned into their cases; a case that lands in two parts is refused. Where a file has no validation part, one
is drawn from each fold's training cases.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mhim.cohort import Cohort
from mhim.errors import CohortError
from mhim.splits import PARTS, Fold, SplitConfig, Splits, draw_validation

WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "": "",
    "val": "val", "valid": "val", "validation": "val", "tune": "val", "dev": "val",
}  # fmt: skip
"""What other programs call a part."""

Assignment = dict[str, set[str]]
"""Part -> names of cases or slides."""


@dataclass(frozen=True)
class ForeignSplits:
    """Splits with where they are from.

    Attributes:
        splits: checked against the cohort.
        layout: whose files they are.
        drew_validation: whether the files had no validation part.
    """

    splits: Splits
    layout: str
    drew_validation: bool


def read_foreign_splits(path: Path, cohort: Cohort, config: SplitConfig) -> ForeignSplits:
    """The splits in another program's files, for a cohort.

    Args:
        path: a folder of ``splits_<k>.csv`` (CLAM), ``splits.json`` (STAMP), or a table with columns ``fold_<k>``
            (Patho-Bench), ``train``/``val``/``test`` (CLAM, TransMIL), ``split``, or without a header (MHIM).
        cohort: whose cases are split; names in the files are its cases or slides.
        config: ``val_fraction`` and ``seed``, where a validation part is drawn.

    Raises:
        CohortError: unknown layout, names that the cohort does not have, a case in two parts, or an empty part.
    """
    layout, assignments = _read(path)
    if not assignments:
        raise CohortError(f"{path}: holds no fold")
    labels = cohort.case_labels()
    owner = {row.slide_id: row.case_id for row in cohort} | {case: case for case in labels}
    drew, folds = False, []
    for index, named in enumerate(assignments):
        parts = {part: _cases(named.get(part, set()), owner, f"{path}: fold {index}", cohort) for part in PARTS}
        if not parts["val"]:
            drew = True
            train = np.array(sorted(parts["train"] - parts["test"]))
            chosen = draw_validation(np.array([labels[case] for case in train], dtype=np.int64), config, index)
            both = parts["train"] & parts["test"]
            parts |= {"train": set(train[~chosen].tolist()) | both, "val": set(train[chosen].tolist())}
        try:
            folds.append(Fold(index, *(tuple(sorted(parts[part])) for part in PARTS)))
        except CohortError as error:
            raise CohortError(f"{path}: {error}") from None
    tested = [set(fold.test) for fold in folds]
    overlap = any(one & other for number, one in enumerate(tested) for other in tested[:number])
    splits = Splits(tuple(folds), repeated=overlap)
    splits.check(cohort, path)
    return ForeignSplits(splits, layout, drew)


def _cases(names: Iterable[str], owner: Mapping[str, str], source: str, cohort: Cohort) -> set[str]:
    """The cases of some cases or slides; file names may end in a suffix or begin with a folder."""
    found = set()
    for name in names:
        bare = name.replace("\\", "/").rsplit("/", 1)[-1]
        known = next((each for each in (name, bare, re.sub(r"\.[A-Za-z0-9]{1,7}$", "", bare)) if each in owner), None)
        if known is None:
            raise CohortError(f"{source}: {name} is neither a case nor a slide of {cohort.source}")
        found.add(owner[known])
    return found


def _read(path: Path) -> tuple[str, list[Assignment]]:
    if path.is_dir():
        return _folder(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"{path}: the splits cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise CohortError(f"{path}: not a readable table (not UTF-8)") from None
    return _stamp(path, text) if path.suffix.lower() == ".json" else _table(path, text)


def _folder(path: Path) -> tuple[str, list[Assignment]]:
    """CLAM's folder, ``splits_0.csv`` and so on; the ``_bool`` and ``_descriptor`` twins are left out."""
    matches = ((re.fullmatch(r"(?:splits?|fold)_?(\d+)\.csv", file.name), file) for file in path.iterdir())
    numbered = sorted((int(match.group(1)), file) for match, file in matches if match is not None)
    if not numbered:
        raise CohortError(f"{path}: no splits_0.csv, splits_1.csv, ... here")
    read = [_table(file, file.read_text(encoding="utf-8-sig")) for _, file in numbered]
    return read[0][0], [assignment for _, assignments in read for assignment in assignments]


def _stamp(path: Path, text: str) -> tuple[str, list[Assignment]]:
    """``{"splits": [{"train_patients": [...], "test_patients": [...]}]}``, also with ``val_patients``."""
    try:
        folds = json.loads(text)["splits"]
        return "STAMP", [{part: {str(n) for n in fold.get(f"{part}_patients", [])} for part in PARTS} for fold in folds]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CohortError(f"{path}: not a STAMP file ('splits' with train_patients and test_patients)") from None


def _table(path: Path, text: str) -> tuple[str, list[Assignment]]:
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    if not rows:
        raise CohortError(f"{path}: the table is empty")
    header = [name.lower() for name in rows[0]]
    body = [row + [""] * (len(header) - len(row)) for row in rows[1:]]
    readers: tuple[Callable[..., tuple[str, list[Assignment]] | None], ...] = (_by_fold, _by_column, _by_part)
    for reader in readers:
        if (found := reader(path, header, body)) is not None:
            return found
    bare = _headless(path, rows)
    if bare is None:
        raise CohortError(
            f"{path}: no layout of splits is known with the columns {', '.join(rows[0])} (known: fold_0, fold_1, ...; "
            f"train, val, test; split; MHIM's ID,Split,Label)"
        )
    return bare


def _by_fold(path: Path, header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[str, list[Assignment]] | None:
    """Patho-Bench: one row a slide, columns ``fold_0``, ``fold_1``, ... with parts as cells."""
    columns = sorted((int(n[5:]), i) for i, n in enumerate(header) if re.fullmatch(r"fold_\d+", n))
    key = _name_column(header)
    if not columns or key is None:
        return None
    return "Patho-Bench", [_assigned(path, [(row[key], row[column]) for row in body]) for _, column in columns]


def _by_column(path: Path, header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[str, list[Assignment]] | None:
    """CLAM: one column a part, slides below each other; MIL_BASELINE calls them ``train_slide_path`` and so on."""
    names = {part: (part, f"{part}_slide_path", f"{part}_slide_id") for part in PARTS}
    at = {part: next((header.index(n) for n in among if n in header), None) for part, among in names.items()}
    if at["train"] is None or at["test"] is None:
        return None
    return "CLAM", [{part: {row[i] for row in body if row[i]} for part, i in at.items() if i is not None}]


def _by_part(path: Path, header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[str, list[Assignment]] | None:
    """One column ``split`` with parts as cells."""
    key = _name_column(header)
    if key is None or "split" not in header:
        return None
    return "table of parts", [_assigned(path, [(row[key], row[header.index("split")]) for row in body])]


def _headless(path: Path, rows: Sequence[Sequence[str]]) -> tuple[str, list[Assignment]] | None:
    """MHIM: ``ID,Split,Label`` or ``Case,ID,Label,Split`` without a header."""
    place = {3: (0, 1), 4: (1, 3)}.get(len(rows[0]))
    if place is None or any(len(row) != len(rows[0]) or row[place[1]].lower() not in WORDS for row in rows):
        return None
    return "MHIM", [_assigned(path, [(row[place[0]], row[place[1]]) for row in rows])]


def _name_column(header: Sequence[str]) -> int | None:
    among = ("case_id", "patient", "patient_id", "slide_id", "slide", "id", "filename")
    return next((header.index(name) for name in among if name in header), None)


def _assigned(path: Path, pairs: Iterable[tuple[str, str]]) -> Assignment:
    found: Assignment = {part: set() for part in PARTS}
    for name, word in pairs:
        part = WORDS.get(word.lower())
        if part is None:
            raise CohortError(f"{path}: {name} has part '{word}'; expected train, val or test")
        if part:
            found[part].add(name)
    return found
