"""The grid file: tiles, tissue and thumbnail of one slide in HDF5, with names that TRIDENT reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import mhim.artefacts as artefacts
from mhim.bag import read_attributes
from mhim.errors import ArtefactError
from mhim.tiles import MAGNIFICATIONS, TileGrid
from mhim.tissue import TissueMask

THUMBNAIL_SIDE_PX = 1024


def save_grid(path: Path, grid: TileGrid) -> None:
    """Write a grid file: to a temporary name, then renamed; ``complete`` is set last."""
    with artefacts.atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        coords = file.create_dataset("coords", data=grid.xy_px0.astype(np.int64))
        tissue = file.create_dataset("tissue", data=grid.tissue.cells.astype(np.uint8), compression="gzip")
        tissue.attrs.update(px0_per_cell=grid.tissue.px0_per_cell, um_per_cell=grid.tissue.um_per_cell)
        if grid.tissue.rejected is not None:
            rejected = grid.tissue.rejected.astype(np.uint8)
            file.create_dataset("rejected", data=rejected, compression="gzip")
        if grid.annotation_fraction is not None:
            file.create_dataset("annotation_fraction", data=grid.annotation_fraction.astype(np.float32))
        if grid.thumbnail is not None:
            thumbnail = file.create_dataset("thumbnail", data=np.frombuffer(jpeg_bytes(grid.thumbnail), np.uint8))
            thumbnail.attrs["format"] = "jpeg"
        for key, value in {**grid.attributes, **trident_names(grid.attributes)}.items():
            if value is not None:
                file.attrs[key] = value
                coords.attrs[key] = value
        file.attrs["slide_id"] = grid.slide_id
        file.attrs["complete"] = True


def load_grid(path: Path) -> TileGrid:
    """The grid in a file.

    Raises:
        FeatureError: missing, not HDF5, or not complete.
        ArtefactError: not a grid file.
    """
    attributes = read_attributes(path)
    with h5py.File(path, "r") as file:
        if "coords" not in file or "tissue" not in file:
            raise ArtefactError(
                f"{path}: not a grid file (found: {', '.join(file) or 'nothing'}); make it by mhim tile"
            )
        scale: dict[str, Any] = dict(file["tissue"].attrs)
        x, y = scale["px0_per_cell"].tolist()
        rejected = _array(file, "rejected").astype(bool) if "rejected" in file else None
        method = str(attributes.get("tissue_method", "stain"))
        cells = _array(file, "tissue").astype(bool)
        tissue = TissueMask(cells, (x, y), float(scale["um_per_cell"]), method, rejected)
        annotation = _array(file, "annotation_fraction") if "annotation_fraction" in file else None
        thumbnail = _picture(_array(file, "thumbnail")) if "thumbnail" in file else None
        return TileGrid(str(attributes["slide_id"]), _array(file, "coords"), tissue, attributes, annotation, thumbnail)


def jpeg_bytes(rgb: NDArray[np.uint8], quality: int = 85) -> bytes:
    """An RGB picture (h, w, 3) uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def trident_names(attributes: Any) -> dict[str, Any]:
    """The same facts under the names that TRIDENT and CLAM use; magnifications only where the mpp fits one."""
    if "tile_size_px" not in attributes:
        return {}
    return {
        "patch_size": attributes["tile_size_px"],
        "patch_size_level0": round(attributes["tile_size_level0"]),
        "target_magnification": magnification(attributes["mpp"]),
        "level0_magnification": magnification(attributes["slide_mpp"]),
        "name": attributes["slide_id"],
    }


def magnification(mpp: float) -> float | None:
    """Objective power that goes with an mpp (10 / mpp), or None when none is within 15 %.

    >>> magnification(0.2528)
    40.0
    >>> magnification(0.7) is None
    True
    """
    nearest = min(MAGNIFICATIONS, key=lambda power: abs(10.0 / mpp - power))
    return nearest if abs(10.0 / mpp / nearest - 1) <= 0.15 else None


def _picture(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(jpeg.tobytes())))


def _array(file: h5py.File, key: str) -> NDArray[Any]:
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        raise ArtefactError(f"{file.filename}: '{key}' is a group, expected an array")
    return item[()]
