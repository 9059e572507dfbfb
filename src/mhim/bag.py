"""A bag: the features of one slide's tiles, and its HDF5 file.

The file keeps the keys that CLAM and TRIDENT use, ``features`` (N, D) and ``coords`` (N, 2) in
level-0 pixels, and adds attributes that say at which scale and by which encoder it was made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import mhim.artefacts as artefacts
from mhim.config import fingerprint
from mhim.errors import FeatureError
from mhim.seal import checksum

CHUNK_ROWS = 512
"""Rows that are checked, or written by ``mhim encode``, at a time."""
ALIGNMENT = 64
"""Features begin at a multiple of this in a file and in memory, so that products of either give the same bits."""
CONTENT_ATTRIBUTES = ("encoder", "encoder_weights_sha256", "mpp", "tile_size_level0")


_STRONG = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
_STRONG.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
"""Closing a file closes what was opened in it."""


@dataclass(frozen=True)
class Bag:
    """The instances of one slide.

    Attributes:
        slide_id: the slide's name.
        features: (N, D) float16 or float32.
        xy_px0: (N, 2) int64, top-left corner of each tile in level-0 pixels, or None when unknown.
        attributes: what the file records, see ``ATTRIBUTES``.
        annotation_fraction: (N,) float32 in [0, 1], share of each tile inside the annotation
            (instance truth, never read in training), or None.
    """

    slide_id: str
    features: NDArray[np.floating[Any]]
    xy_px0: NDArray[np.int64] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    annotation_fraction: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tile_size_px0(self) -> float | None:
        """Side of a tile in level-0 pixels, or None when the file does not say."""
        size = self.attributes.get("tile_size_level0")
        return None if size is None else float(size)


ATTRIBUTES: dict[str, str] = {
    "slide_id": "the slide's name",
    "slide_path": "the slide file that was read",
    "mpp": "micrometres per pixel of the tiles that the encoder saw",
    "slide_mpp": "micrometres per level-0 pixel",
    "slide_mpp_source": "where slide_mpp came from",
    "tile_size_px": "side of a tile as the encoder saw it, pixels",
    "tile_size_level0": "side of a tile in level-0 pixels",
    "overlap": "overlap of neighbouring tiles, pixels at mpp",
    "level0_width": "slide width, level-0 pixels",
    "level0_height": "slide height, level-0 pixels",
    "reader": "slide reader",
    "reader_version": "its version",
    "encoder": "encoder name",
    "encoder_revision": "encoder revision",
    "encoder_weights_sha256": "digest of the encoder's weights",
    "backend": "runtime that ran the encoder",
    "resample": "how tiles were brought to mpp: parity or fast",
    "transform": "what was done to a tile before the encoder",
    "precision": "arithmetic of the encoder",
    "deviation": "how far backend and precision move features from torch in float32",
    "tile_count": "tiles that were planned on the slide",
    "failed_count": "tiles that could not be read and are left out, listed in failed_coords and failed_reason",
    "tissue_mask_id": "digest of the tissue mask",
    "content_digest": "digest of features, coordinates, encoder and scale, set by mhim repack",
    "content_facts": "digest of the encoder and scale that content_digest is of",
    "content_checksum": "checksum of features and coordinates; a bag that does not fit it is refused",
    "packed_by": "digest of the file and the options that mhim repack made it from",
    "config_fingerprint": "digest of the configuration that made the file",
    "input_fingerprint": "digest of the input that it was made from",
    "tool": "program that wrote the file",
    "tool_version": "its version",
}


def save_bag(path: Path, bag: Bag, precision: str = "float16") -> None:
    """Write a bag file: to a temporary name, then renamed; ``complete`` is set last.

    Args:
        path: the file, ``<slide_id>.h5``.
        bag: what to write.
        precision: dtype of the stored features.

    Raises:
        FeatureError: the bag is empty, not two-dimensional, not finite, or overflows ``precision``; or its
            coordinates or instance truth do not fit its features.
    """
    check_features(bag.features, path)
    _check_rows(bag, path)
    stored = to_storage(bag.features, precision, path)
    with artefacts.atomic_path(path) as temporary, create_file(temporary) as file:
        file.create_dataset("features", data=stored)
        write_facts(file, bag)
        file.attrs["complete"] = True


def create_file(path: Path) -> h5py.File:
    """A new HDF5 file whose arrays begin at multiples of ``ALIGNMENT``; features in one piece can then be mapped."""
    return h5py.File(path, "w", locking=False, alignment_threshold=1, alignment_interval=ALIGNMENT)


def write_facts(file: h5py.File, bag: Bag) -> None:
    """Write what a bag file holds besides its features: coordinates, instance truth, attributes."""
    if bag.xy_px0 is not None:
        file.create_dataset("coords", data=np.asarray(bag.xy_px0, dtype=np.int64))
    if bag.annotation_fraction is not None:
        file.create_dataset("annotation_fraction", data=bag.annotation_fraction.astype(np.float32))
    for key, value in bag.attributes.items():
        if value is not None:
            file.attrs[key] = value
    file.attrs["slide_id"] = bag.slide_id


def to_storage(features: NDArray[Any], precision: str, source: object) -> NDArray[Any]:
    """Finite features in the dtype that is stored.

    Raises:
        FeatureError: a value is beyond the range of ``precision``; names ``source``.
    """
    with np.errstate(over="ignore"):
        stored = features.astype(precision)
    if not _all_finite(stored):
        raise FeatureError(f"{source}: features overflow {precision}; store them with precision float32")
    return stored


def check_features(features: NDArray[Any], source: object) -> None:
    """Refuse features that no model can use.

    Raises:
        FeatureError: not (N, D), zero instances, zero width, or NaN or infinite values; names ``source``.
    """
    _check_layout(features.shape, features.dtype, source)
    if not _all_finite(features):
        bad = ~np.isfinite(features).all(axis=1)
        count = f"{int(bad.sum())} of {len(features)} instances"
        raise FeatureError(f"{source}: {count} hold NaN or infinite features; encode the slide again")


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], source: object) -> None:
    if len(shape) != 2:
        raise FeatureError(f"{source}: features have shape {shape}, expected (instances, width)")
    if shape[0] == 0:
        raise FeatureError(f"{source}: zero instances; was tissue found on this slide?")
    if shape[1] == 0:
        raise FeatureError(f"{source}: the features have width zero")
    if dtype.kind != "f":
        raise FeatureError(f"{source}: features are {dtype}, expected floating point")


def _all_finite(features: NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; half precision by its exponent bits, ten times as fast as by numpy."""
    if features.dtype != np.float16:
        return bool(np.isfinite(features).all())
    exponent = np.uint16(0x7C00)
    blocks = (features[start : start + CHUNK_ROWS] for start in range(0, len(features), CHUNK_ROWS))
    return all((block.view(np.uint16) & exponent).max(initial=0) < exponent for block in blocks)


def _check_rows(bag: Bag, source: object) -> None:
    """Refuse coordinates and instance truth that do not fit the features."""
    for name, rows in (("coords", bag.xy_px0), ("annotation_fraction", bag.annotation_fraction)):
        if rows is not None and len(rows) != len(bag):
            raise FeatureError(f"{source}: {len(rows)} rows in '{name}' but {len(bag)} in 'features'")
    if bag.xy_px0 is not None and bag.xy_px0.shape != (len(bag), 2):
        raise FeatureError(f"{source}: 'coords' has shape {bag.xy_px0.shape}, expected ({len(bag)}, 2)")
    truth = bag.annotation_fraction
    if truth is not None and not (truth.ndim == 1 and bool(((truth >= 0) & (truth <= 1)).all())):
        raise FeatureError(f"{source}: 'annotation_fraction' holds values outside 0 to 1")


def content_facts(bag: Bag) -> str:
    """Digest of what is learned from besides the numbers: type, shape, encoder, scale."""
    facts = [bag.features.dtype.str, bag.features.shape, *(bag.attributes.get(key) for key in CONTENT_ATTRIBUTES)]
    return fingerprint([str(fact) for fact in facts])


def content_digest(bag: Bag) -> str:
    """16 hexadecimal digits that identify what is learned from: features, their type, coordinates, encoder, scale.

    Where the file lies, and where its slide lay, is no part of it. A packed bag (:func:`seal`) holds it; it is taken
    from there, so check the content first.
    """
    facts = content_facts(bag)
    if bag.attributes.get("content_facts") == facts and "content_digest" in bag.attributes:
        return str(bag.attributes["content_digest"])
    digest = hashlib.sha256(facts.encode())
    digest.update(np.ascontiguousarray(bag.features).data)
    if bag.xy_px0 is not None:
        digest.update(np.ascontiguousarray(bag.xy_px0).data)
    return digest.hexdigest()[:16]


def seal(bag: Bag) -> Bag:
    """The bag with its digest and checksum among its attributes: it is checked in one pass at the speed of memory."""
    kept = {key: value for key, value in bag.attributes.items() if not key.startswith("content_")}
    plain = replace(bag, attributes=kept)
    sealed = {
        "content_digest": content_digest(plain),
        "content_facts": content_facts(plain),
        "content_checksum": checksum(bag.features, bag.xy_px0),
    }
    return replace(bag, attributes=kept | sealed)


def check_content(bag: Bag, source: object) -> None:
    """Refuse a bag that cannot be learned from: by its seal where it has one, else number by number.

    Raises:
        FeatureError: the numbers are not those that were packed, not finite, or do not fit each other.
    """
    said = bag.attributes.get("content_checksum")
    if said is None:
        check_features(bag.features, source)
    else:
        _check_layout(bag.features.shape, bag.features.dtype, source)
        if checksum(bag.features, bag.xy_px0) != said:
            raise FeatureError(
                f"{source}: damaged or changed since it was packed (its checksum does not fit); "
                f"pack it again with 'mhim repack --overwrite'"
            )
    _check_rows(bag, source)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a complete bag or grid file, as plain Python values.

    Raises:
        FeatureError: the file is missing, is not HDF5, or is not complete.
    """
    with open_complete(path) as file:
        return _plain_attributes(file)


def _plain_attributes(file: h5py.File) -> dict[str, Any]:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}


def load_bag(path: Path, features: NDArray[Any] | None = None) -> Bag:
    """The bag in a file, checked.

    Args:
        path: the file.
        features: those of the file where they are mapped already; read by default.

    Raises:
        FeatureError: missing, not HDF5, incomplete, damaged, without ``features``, empty or not finite, not what was
            packed, or with coordinates or instance truth that do not fit the features.
    """
    try:
        with open_complete(path) as file:
            attributes = _plain_attributes(file)
            stored = _features_of(file)
            features = _read_aligned(stored) if features is None else features
            xy_px0 = _dataset(file, "coords")[()] if "coords" in file else None
            truth = _dataset(file, "annotation_fraction")[()] if "annotation_fraction" in file else None
    except OSError as error:
        raise FeatureError(f"{path}: damaged, cannot be read to its end ({error}); make it again") from None
    if xy_px0 is not None and xy_px0.dtype.kind not in "iu":
        raise FeatureError(f"{path}: 'coords' are {xy_px0.dtype}, expected whole level-0 pixels")
    xy_px0 = None if xy_px0 is None else xy_px0.astype(np.int64)
    bag = Bag(str(attributes.get("slide_id", path.stem)), features, xy_px0, attributes, truth)
    check_content(bag, path)
    return bag


@dataclass(frozen=True)
class Place:
    """Where features lie in a file, in one piece: byte offset, shape (N, D), dtype."""

    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Length of the piece."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def place_of_features(path: Path) -> Place | None:
    """Where the features of a complete bag file can be mapped; None where they are chunked, packed or not aligned.

    Raises:
        FeatureError: missing, not HDF5, incomplete, shorter than it says, without ``features``, or of a layout that no
            model can use; numbers are not looked at.
    """
    try:
        found = _quick_layout(path)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError):
        found = None
    if found is None:  # the comfortable way, which says what is wrong
        with open_complete(path) as file:
            stored = _features_of(file)
            found = stored.id.get_offset(), stored.shape, stored.dtype
    offset, shape, dtype = found
    _check_layout(shape, dtype, path)
    if offset is None or offset % ALIGNMENT or not dtype.isnative:
        return None
    place = Place(offset, (shape[0], shape[1]), dtype)
    if path.stat().st_size < place.offset + place.nbytes:
        raise FeatureError(f"{path}: shorter than it says, cut off; make it again")
    return place


def _quick_layout(path: Path) -> tuple[int | None, tuple[int, ...], np.dtype[Any]] | None:
    """Offset, shape and dtype of the features of a complete file, by HDF5's own calls; None where it is not complete.

    Opening a file takes longer than mapping 16 MB of it; this takes half of h5py's time.
    """
    file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, _STRONG)
    try:
        complete = h5py.h5a.open(file, b"complete")
        said = np.zeros(complete.shape, complete.dtype)
        complete.read(said)
        stored = h5py.h5d.open(file, b"features")
        return (stored.get_offset(), stored.shape, stored.dtype) if said.all() else None
    finally:
        file.close()


def read_truth(path: Path) -> NDArray[np.float32] | None:
    """Instance truth (N,) of a complete bag file, where it has one; nothing else is read."""
    with open_complete(path) as file:
        return _dataset(file, "annotation_fraction")[()] if "annotation_fraction" in file else None


def _features_of(file: h5py.File) -> h5py.Dataset:
    if "features" not in file:
        raise FeatureError(f"{file.filename}: no dataset 'features' (found: {', '.join(file) or 'nothing'})")
    return _dataset(file, "features")


def _read_aligned(stored: h5py.Dataset) -> NDArray[Any]:
    """A dataset in memory, beginning at a multiple of ``ALIGNMENT``."""
    if not stored.shape or not stored.size:
        return stored[()]
    raw = np.empty(stored.size * stored.dtype.itemsize + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    values = raw[start : start + len(raw) - ALIGNMENT].view(stored.dtype).reshape(stored.shape)
    stored.read_direct(values)
    return values


def _dataset(file: h5py.File, key: str) -> h5py.Dataset:
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        raise FeatureError(f"{file.filename}: '{key}' is a group, expected an array")
    return item


def open_complete(path: Path) -> h5py.File:
    """A complete bag or grid file, opened for reading.

    Raises:
        FeatureError: the file is missing, is not HDF5, or is not complete.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file") from None
    except OSError as error:
        raise FeatureError(f"{path}: not a readable HDF5 file ({error})") from None
    if not file.attrs.get("complete", False):
        file.close()
        raise FeatureError(f"{path}: not marked complete; make it again, or bring foreign files in with 'mhim convert'")
    return file
