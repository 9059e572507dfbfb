"""Features made by other tools, brought into bag files and a cohort table.

Two sources: a folder with one file per slide (CLAM, TRIDENT, STAMP, AtlasPatch, plain tensors and
arrays), and a feature matrix with tables that say which rows make which bag.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

import mhim
from mhim.artefacts import quick_digest, write_text
from mhim.bag import Bag, save_bag
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import Settings, fingerprint
from mhim.errors import ArtefactError, ConfigError, FeatureError
from mhim.foreign import ConvertConfig, read_foreign, squeeze
from mhim.resume import is_complete

SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")


class TableConfig(Settings):
    """Columns of a bag table and an instance table that go with a feature matrix."""

    bag_id: str = Field(description="column of the bag table: name of the bag; also the case unless case_id is given")
    label: str = Field(description="column of the bag table: bag label")
    rows: str = Field(description="column of the bag table: its rows of the matrix, numbers separated by spaces")
    case_id: str | None = Field(None, description="column of the bag table: owner of the bag")
    fold: str | None = Field(None, description="column of the bag table: test fold")
    where: dict[str, str] = Field(default_factory=dict, description="use only bag rows with these values")
    x: str | None = Field(None, description="column of the instance table: left edge, level-0 pixels")
    y: str | None = Field(None, description="column of the instance table: top edge, level-0 pixels")
    truth: str | None = Field(None, description="column of the instance table: 1 inside the annotation, else 0")


def convert_folder(source: Path, out: Path, config: ConvertConfig, overwrite: bool = False) -> BatchResult:
    """Convert a folder of per-slide feature files; what a file says is kept, ``config`` fills the rest.

    Args:
        source: folder; files are told apart by content, not by name.
        out: folder of the bag files.
        config: see :class:`ConvertConfig`.
        overwrite: replace bags of another input or configuration.

    Raises:
        FeatureError: no such folder, nothing to convert, or two files of one slide.
        ArtefactError: ``out`` is the source.
    """
    files = feature_files(source, out, "to convert")

    def work(path: Path) -> Outcome:
        identity = _identity(config, quick_digest(path))
        target = out / f"{path.stem}.h5"
        if is_complete(target, **identity, overwrite=overwrite):
            return Outcome.SKIPPED
        features, xy_px0, found = read_foreign(path, config)
        attributes = known_attributes(config) | identity | found
        save_bag(target, Bag(path.stem, features, xy_px0, attributes), config.precision)
        return Outcome.DONE

    return run_batch(files, work, name=lambda path: path.name, label="converting")


def feature_files(source: Path, out: Path, purpose: str) -> list[Path]:
    """The feature files of a folder, one a slide.

    Args:
        source: the folder.
        out: where something is going to be made of them.
        purpose: "to convert", for messages.

    Raises:
        FeatureError: no such folder, none there, or two files of one slide.
        ArtefactError: ``out`` is the source.
    """
    if not source.is_dir():
        raise FeatureError(f"{source}: no such folder of feature files")
    if out.resolve() == source.resolve():
        raise ArtefactError(f"{out}: is the folder {purpose}; give another --out")
    files = sorted(
        path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise FeatureError(f"{source}: no feature files here (looked for {' '.join(SUFFIXES)})")
    for first, second in itertools.pairwise(sorted(files, key=lambda path: path.stem)):
        if first.stem == second.stem:
            raise FeatureError(f"{source}: {first.name} and {second.name} are of one slide; keep one of them")
    return files


def convert_tables(
    matrix: Path,
    bags: Path,
    instances: Path | None,
    out: Path,
    columns: TableConfig,
    config: ConvertConfig,
    overwrite: bool = False,
) -> BatchResult:
    """Convert a feature matrix with tables: bag files in ``out/features``, cohort table ``out/cohort.csv``.

    Args:
        matrix: ``.npz`` with ``features`` (R, D), or ``.npy``.
        bags: CSV, one row per bag.
        instances: CSV, one row per matrix row, in matrix order; for coordinates and instance truth.
        out: folder to write.
        columns: which columns say what.
        config: what the matrix does not say.
        overwrite: replace bags of another input or configuration.

    Raises:
        FeatureError, ConfigError: a missing file or column, or rows outside the matrix.
    """
    features = _read_matrix(matrix)
    records = _chosen_bags(bags, columns)
    facts = _read_table(instances, [columns.x, columns.y, columns.truth]) if instances else None
    if facts is not None and len(facts) != len(features):
        raise FeatureError(f"{instances}: {len(facts)} rows, but {matrix} has {len(features)}")
    source = fingerprint([quick_digest(path) for path in (matrix, bags, instances) if path is not None])
    identity = _identity(config, fingerprint([source, columns.model_dump()]))
    cohort = _cohort_csv(records, columns)
    _check_cohort(out / "cohort.csv", cohort, overwrite)

    def work(record: dict[str, str]) -> Outcome:
        target = out / "features" / f"{record[columns.bag_id]}.h5"
        if is_complete(target, **identity, overwrite=overwrite):
            return Outcome.SKIPPED
        rows = _rows_of(bags, record, columns, len(features))
        xy_px0, truth = _facts_of(facts, columns, rows)
        bag = Bag(record[columns.bag_id], features[rows], xy_px0, known_attributes(config) | identity, truth)
        save_bag(target, bag, config.precision)
        return Outcome.DONE

    result = run_batch(records, work, name=lambda record: str(record[columns.bag_id]), label="converting")
    write_text(out / "cohort.csv", cohort)
    return result


def _chosen_bags(bags: Path, columns: TableConfig) -> list[dict[str, str]]:
    """The rows of the bag table that ``columns.where`` selects, one per bag."""
    table = _read_table(bags, [columns.bag_id, columns.label, columns.rows, columns.case_id, columns.fold])
    for key, value in columns.where.items():
        if key not in table.columns:
            raise ConfigError(f"{bags}: no column '{key}' to select by (found: {', '.join(table.columns)})")
        table = table.loc[table[key] == value]
    if table.empty:
        raise ConfigError(f"{bags}: no bag has {columns.where}")
    _check_bag_names(bags, list(table[columns.bag_id]))
    return table.to_dict("records")


def _check_bag_names(bags: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(f"{bags}: bag {repeated[0]} has more than one row; choose one with --where column=value")
    for name in names:
        if not name or "/" in name or "\\" in name:
            raise ConfigError(f"{bags}: '{name}' cannot name a bag file; give the bare name")


def _check_cohort(path: Path, text: str, overwrite: bool) -> None:
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        raise ArtefactError(f"{path}: exists with other rows; give another --out, or --overwrite")


def _rows_of(bags: Path, record: Mapping[str, str], columns: TableConfig, count: int) -> NDArray[np.int64]:
    name, text = record[columns.bag_id], record[columns.rows]
    try:
        rows = np.array([int(number) for number in text.split()], dtype=np.int64)
    except ValueError:
        raise FeatureError(f"{bags}: bag {name}: '{columns.rows}' holds more than whole numbers") from None
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= count:
        raise FeatureError(f"{bags}: bag {name} names no rows, or rows outside the matrix of {count}")
    return rows


def _read_matrix(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise FeatureError(f"{path}: no such file")
    try:
        with path.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return squeeze(path, loaded)
            if "features" not in loaded:
                raise FeatureError(f"{path}: no array 'features' (found: {', '.join(loaded)})")
            return squeeze(path, loaded["features"])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise FeatureError(f"{path}: not a matrix that can be read safely ({error})") from None


def _read_table(path: Path, needed: Sequence[str | None]) -> pd.DataFrame:
    if not path.is_file():
        raise FeatureError(f"{path}: no such table")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FeatureError(f"{path}: not a readable CSV table ({error})") from None
    table = table.fillna("")  # cells that a short row lacks
    for column in needed:
        if column is not None and column not in table.columns:
            raise ConfigError(f"{path}: no column '{column}' (found: {', '.join(table.columns)})")
    return table


def _facts_of(
    facts: pd.DataFrame | None, columns: TableConfig, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    if facts is None:
        return None, None
    chosen = facts.iloc[rows]
    xy_px0 = truth = None
    if columns.x is not None and columns.y is not None:
        xy_px0 = chosen[[columns.x, columns.y]].to_numpy(dtype=np.float64).astype(np.int64)
    if columns.truth is not None:
        truth = chosen[columns.truth].to_numpy(dtype=np.float32)
    return xy_px0, truth


def _cohort_csv(records: Sequence[Mapping[str, str]], columns: TableConfig) -> str:
    cohort = pd.DataFrame(
        {
            "slide_id": [record[columns.bag_id] for record in records],
            "case_id": [record[columns.case_id or columns.bag_id] for record in records],
            "label": [record[columns.label] for record in records],
        }
    )
    if columns.fold is not None:
        cohort["fold"] = [record[columns.fold] for record in records]
    buffer = io.StringIO()
    cohort.to_csv(buffer, index=False)
    return buffer.getvalue()


def _identity(config: ConvertConfig, source: str) -> dict[str, str]:
    return {"config_fingerprint": fingerprint(config), "input_fingerprint": source}


def known_attributes(config: ConvertConfig) -> dict[str, Any]:
    """What a bag of a foreign file records that its user said, and who wrote it."""
    return {
        "encoder": config.encoder,
        "mpp": config.mpp,
        "slide_mpp": config.slide_mpp,
        "tile_size_level0": config.tile_size_px0,
        "tool": "mhim",
        "tool_version": mhim.__version__,
    }
