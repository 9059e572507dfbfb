"""What a file or folder is, as plain values: bags, grids, run folders, model files, folders of bags and grids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mhim.artefacts import read_json
from mhim.bag import CHUNK_ROWS
from mhim.errors import ArtefactError, FeatureError

SHOWN_FAILURES = 20
SUMMARISED = ("encoder", "encoder_weights_sha256", "backend", "precision", "mpp", "tile_size_px", "reader", "resample",
              "slide_mpp_source")  # fmt: skip


def describe(path: Path) -> dict[str, Any]:
    """What is at a path, ready for JSON: always with ``path`` and ``kind``.

    Kinds: "bag", "grid", "HDF5 file" (other, or not complete), "unfinished bag", "model", "run", "folder of bags",
    "folder of grids".

    Raises:
        ArtefactError: nothing there, or nothing that this program knows.
        FeatureError: an HDF5 file that cannot be read.
    """
    if path.is_dir():
        facts = _describe_folder(path)
    elif path.is_file():
        facts = _describe_file(path)
    elif _partial(path).is_file():
        facts = _describe_partial(_partial(path))
    else:
        raise ArtefactError(f"{path}: no such file or folder")
    return {"path": str(path), **facts}


def _describe_file(path: Path) -> dict[str, Any]:
    if path.name.endswith(".partial"):
        return _describe_partial(path)
    if path.suffix == ".safetensors":
        return _describe_model(path)
    if not h5py.is_hdf5(path):
        raise ArtefactError(f"{path}: neither a bag, a grid, a model nor a run folder")
    return _read(path, _describe_hdf5)


def _read(path: Path, describe_file: Callable[[h5py.File], dict[str, Any]]) -> dict[str, Any]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return describe_file(file)
    except OSError as error:
        raise FeatureError(f"{path}: not a readable HDF5 file ({error})") from None


def _describe_hdf5(file: h5py.File) -> dict[str, Any]:
    attributes = {key: plain(value) for key, value in file.attrs.items()}
    datasets: dict[str, Any] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            chunk = None if item.chunks is None else list(item.chunks)
            datasets[name] = {"shape": list(item.shape), "dtype": str(item.dtype), "chunk": chunk}

    file.visititems(note)
    complete = bool(attributes.get("complete", False))
    kind = "HDF5 file"
    if complete:
        kind = "bag" if "features" in datasets else "grid" if "tissue" in datasets else kind
    facts = {"kind": kind, "complete": complete, "bytes": Path(file.filename).stat().st_size}
    rows = datasets.get("features" if kind == "bag" else "coords")
    if kind != "HDF5 file" and rows is not None:
        facts["tiles"] = rows["shape"][0]
    return {**facts, "datasets": datasets, "attributes": attributes, **_failures(file)}


def _failures(file: h5py.File) -> dict[str, Any]:
    """The first tiles that could not be read, with their corners."""
    corners, reasons = file.get("failed_coords"), file.get("failed_reason")
    if not (isinstance(corners, h5py.Dataset) and isinstance(reasons, h5py.Dataset)):
        return {}
    shown = zip(corners[:SHOWN_FAILURES].tolist(), reasons[:SHOWN_FAILURES], strict=True)
    return {"failed": [{"xy_px0": corner, "reason": reason.decode()} for corner, reason in shown]}


def _describe_partial(path: Path) -> dict[str, Any]:
    facts = _read(path, _describe_hdf5)
    journal = path.with_name(path.name.removesuffix(".partial") + ".journal")
    lines = journal.read_bytes().splitlines() if journal.is_file() else []
    done = {number for line in lines if (number := _chunk_number(line)) is not None}
    rows = facts["datasets"].get("features", {}).get("shape", [0])[0]
    return {
        **facts,
        "kind": "unfinished bag",
        "tiles": rows,
        "chunks_done": len(done),
        "chunks": -(-rows // CHUNK_ROWS),
    }


def _chunk_number(line: bytes) -> int | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry.get("chunk") if isinstance(entry, dict) else None


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _describe_model(path: Path) -> dict[str, Any]:
    """Names and sizes of a safetensors file: a length of eight bytes, then that much JSON."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            header = json.loads(handle.read(min(length, path.stat().st_size)))
        except ValueError:
            raise ArtefactError(f"{path}: not a safetensors file") from None
    metadata = header.pop("__metadata__", {})
    count = sum(int(np.prod(entry["shape"])) for entry in header.values())
    return {"kind": "model", "parameters": count, "tensors": len(header), "attributes": metadata}


def _describe_folder(path: Path) -> dict[str, Any]:
    if (path / "run.json").is_file():
        return _describe_run(path)
    files = sorted(file for file in path.glob("*.h5") if not file.name.startswith("."))
    unfinished = sorted(path.glob(".*.h5.partial"))
    if not files and not unfinished:
        raise ArtefactError(f"{path}: neither a run folder nor a folder of bags or grids")
    described = {file.stem: _describe_file(file) for file in files}
    kinds = Counter(entry["kind"] for entry in described.values())
    of = {
        name: dict(Counter(str(entry["attributes"].get(name, "not said")) for entry in described.values()))
        for name in SUMMARISED
        if any(name in entry["attributes"] for entry in described.values())
    }
    return {
        "kind": "folder of grids" if kinds["grid"] > kinds["bag"] else "folder of bags",
        "files": len(files),
        "complete": sum(entry["complete"] for entry in described.values()),
        "tiles": sum(entry.get("tiles", 0) for entry in described.values()),
        "bytes": sum(entry["bytes"] for entry in described.values()),
        "failed_tiles": {
            name: count
            for name, entry in described.items()
            if (count := int(entry["attributes"].get("failed_count", 0)))
        },
        "unfinished": [file.name[1:].removesuffix(".h5.partial") for file in unfinished],
        "attributes": of,
    }


def _describe_run(path: Path) -> dict[str, Any]:
    info = read_json(path / "run.json")
    folds = sorted(path.glob("fold_*/fold.json"), key=lambda file: int(file.parent.name.partition("_")[2]))
    metrics = read_json(path / "metrics.json") if (path / "metrics.json").is_file() else {}
    return {
        "kind": "run",
        "complete": len(folds) == info.get("n_folds"),
        "folds_done": len(folds),
        "attributes": info,
        "metrics": metrics.get("fold_mean", {}),
    }


def plain(value: Any) -> Any:
    """An attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
