"""One file of features made by another tool: CLAM, TRIDENT, STAMP, AtlasPatch, plain tensors and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import FeatureError

FEATURE_KEYS = ("features", "feats")
HDF5_MAGIC, NUMPY_MAGIC = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"


class ConvertConfig(Settings):
    """What foreign files do not say about themselves."""

    encoder: str | None = Field(None, description="encoder that made the features")
    mpp: float | None = Field(None, gt=0, description="micrometres per pixel of the tiles")
    slide_mpp: float | None = Field(None, gt=0, description="micrometres per level-0 pixel, for coordinates in um")
    tile_size_px0: float | None = Field(None, gt=0, description="side of a tile in level-0 pixels")
    coords_unit: Literal["px0", "um"] | None = Field(None, description="unit of coordinates that do not say theirs")
    precision: str = Field("float16", pattern="^float(16|32)$", description="dtype of the stored features")


def read_foreign(
    path: Path, config: ConvertConfig
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64] | None, dict[str, Any]]:
    """Features (N, D), level-0 coordinates (N, 2) or None, and attributes of one foreign file.

    Raises:
        FeatureError: unreadable, of a layout that is not known, or with coordinates of unknown unit.
    """
    with path.open("rb") as handle:
        magic = handle.read(8)
    if magic == HDF5_MAGIC:
        features, coords, said = _read_hdf5(path, config)
    elif magic.startswith(NUMPY_MAGIC):
        features, coords, said = _read_numpy(path), None, {}
    else:
        features, coords = _read_pt(path)
        said = {}
    features = squeeze(path, features)
    return features, None if coords is None else _to_px0(path, coords, said, config), _known_attributes(said, config)


def _read_hdf5(path: Path, config: ConvertConfig) -> tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]:
    try:
        with h5py.File(path, "r") as file:
            stored = _stored_features(path, file, config)
            coords = file.get("coords")
            said: dict[str, Any] = {**file.attrs, **stored.attrs}
            if stored.parent.name != "/":
                said.setdefault("encoder", str(stored.name).rpartition("/")[2])
            if not isinstance(coords, h5py.Dataset):
                return stored[()], None, said
            said |= dict(coords.attrs)
            if stored.name == "/feats":
                said.setdefault("unit", None)  # STAMP: pixels or micrometres, older files do not say
            return stored[()], coords[()], said
    except OSError as error:
        raise FeatureError(f"{path}: not a readable HDF5 file ({error})") from None


def _stored_features(path: Path, file: h5py.File, config: ConvertConfig) -> h5py.Dataset:
    for key in FEATURE_KEYS:
        found = file.get(key)
        if isinstance(found, h5py.Dataset):
            return found
        if isinstance(found, h5py.Group):  # AtlasPatch: one array per encoder
            name = next(iter(found)) if config.encoder is None and len(found) == 1 else config.encoder
            inner = found.get(name) if name is not None else None
            if not isinstance(inner, h5py.Dataset):
                raise FeatureError(f"{path}: '{key}' holds {', '.join(found) or 'nothing'}; choose with --encoder")
            return inner
    raise FeatureError(f"{path}: no dataset 'features' or 'feats' (found: {', '.join(file) or 'nothing'})")


def _read_numpy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FeatureError(f"{path}: not an array file that can be read safely ({error})") from None


def squeeze(path: Path, features: NDArray[Any]) -> NDArray[Any]:
    """Features (N, D), from those or from (1, N, D).

    Raises:
        FeatureError: another shape; names the file.
    """
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.ndim != 2:
        raise FeatureError(f"{path}: features have shape {features.shape}, expected (instances, width)")
    return features


def _read_pt(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many kinds; the file is named and refused)
        raise FeatureError(f"{path}: not a tensor file that can be read safely ({type(error).__name__})") from None
    coords = value.get("coords") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        value = next((value[key] for key in FEATURE_KEYS if key in value), None)
    if not isinstance(value, torch.Tensor):
        raise FeatureError(f"{path}: holds no tensor of features")
    value = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
    return value.numpy(), coords.detach().numpy() if isinstance(coords, torch.Tensor) else None


def _to_px0(path: Path, coords: NDArray[Any], said: Mapping[str, Any], config: ConvertConfig) -> NDArray[np.int64]:
    """Coordinates in level-0 pixels. CLAM, TRIDENT and AtlasPatch store those; STAMP stores micrometres."""
    if coords.ndim < 2 or coords.shape[-1] < 2 or not np.isfinite(coords).all():
        raise FeatureError(f"{path}: coordinates of shape {coords.shape} are not finite pairs x, y")
    unit = said["unit"] if said.get("unit") is not None else config.coords_unit
    if unit is None and "unit" in said:
        raise FeatureError(f"{path}: coordinates have no unit; give --coords-unit um or --coords-unit px0")
    if unit not in (None, "um", "px0", "px"):
        raise FeatureError(f"{path}: coordinates are in '{unit}', expected um or level-0 pixels")
    coords = coords.reshape(-1, coords.shape[-1])[:, :2]
    if unit == "um":
        if config.slide_mpp is None:
            raise FeatureError(f"{path}: coordinates are in micrometres; give --slide-mpp to turn them into pixels")
        coords = coords / config.slide_mpp
    return np.rint(coords).astype(np.int64)


def _known_attributes(said: Mapping[str, Any], config: ConvertConfig) -> dict[str, Any]:
    """Our attributes from those of CLAM (patch_size x downsample), TRIDENT, AtlasPatch and STAMP (tile_size_um)."""
    found: dict[str, Any] = {}
    if "patch_size_level0" in said:
        found["tile_size_level0"] = float(said["patch_size_level0"])
    elif "patch_size" in said and "downsample" in said:
        found["tile_size_level0"] = float(said["patch_size"]) * float(np.max(said["downsample"]))
    elif "tile_size_um" in said and config.slide_mpp is not None:
        found["tile_size_level0"] = float(said["tile_size_um"]) / config.slide_mpp
    for ours, theirs in (("tile_size_px", "tile_size_px"), ("tile_size_px", "patch_size"), ("overlap", "overlap")):
        if theirs in said:
            found.setdefault(ours, int(said[theirs]))
    if "tile_size_um" in said and "tile_size_px" in said:
        found["mpp"] = float(said["tile_size_um"]) / float(said["tile_size_px"])
    for key in ("level0_width", "level0_height"):
        if key in said:
            found[key] = int(said[key])
    name = said.get("encoder", said.get("extractor"))
    if name is not None:
        found["encoder"] = str(name)
    return found
