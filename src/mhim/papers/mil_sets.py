"""The classic multiple-instance sets as ``.npz`` files with published folds."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mhim.errors import FeatureError

KEYS = {"features": 2, "bag_index": 1, "bag_label": 1, "test_fold": 2}


@dataclass(frozen=True)
class MILSet:
    """A set of labelled bags with repeated cross-validation folds.

    Attributes:
        name: of the set, from the file's name.
        features: (M, D) float32, instances of all bags, bag after bag, as in the file.
        start: (B,) int64, first instance of each bag.
        count: (B,) int64, number of instances of each bag, at least 1.
        label: (B,) int64, 1 for positive bags.
        test_fold: (R, B) int64, the fold that tests a bag in each repetition.
    """

    name: str
    features: NDArray[np.float32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]
    label: NDArray[np.int64]
    test_fold: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def instances(self, bags: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the features of some bags."""
        return np.concatenate([int(self.start[bag]) + np.arange(int(self.count[bag])) for bag in bags.tolist()])


def read_mil_set(path: Path) -> MILSet:
    """The set in a file with ``features`` (M, D), ``bag_index`` (M,), ``bag_label`` (B,), ``test_fold`` (R, B).

    Raises:
        FeatureError: not such a file, bags not one after the other, empty bags, other labels than 0 and 1, values
            that are not finite, or a fold whose training part has one class.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise FeatureError(f"{path}: no array {', '.join(missing)} (found: {', '.join(file) or 'nothing'})")
            arrays = {key: np.asarray(file[key]) for key in KEYS}
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FeatureError(f"{path}: not a readable .npz file ({error})") from None
    for key, axes in KEYS.items():
        if arrays[key].ndim != axes:
            raise FeatureError(f"{path}: '{key}' has shape {arrays[key].shape}, expected {axes} axes")
    features = arrays["features"].astype(np.float32)
    index, label, folds = (arrays[key].astype(np.int64) for key in ("bag_index", "bag_label", "test_fold"))
    if len(index) != len(features) or folds.shape[1] != len(label) or not np.isfinite(features).all():
        raise FeatureError(f"{path}: arrays of different length, or features that are not finite")
    count = np.bincount(index, minlength=len(label)) if len(index) and index.min() >= 0 else np.zeros(0)
    if len(count) != len(label) or (np.diff(index) < 0).any() or (count == 0).any():
        raise FeatureError(f"{path}: 'bag_index' must run from 0 to {len(label) - 1} in order, with no bag empty")
    if set(np.unique(label)) != {0, 1}:
        raise FeatureError(f"{path}: 'bag_label' must hold 0 and 1, both")
    for row in folds:
        if any(len(np.unique(label[row != fold])) < 2 for fold in np.unique(row)) or len(np.unique(row)) < 2:
            raise FeatureError(f"{path}: a fold leaves one class or nothing to train on")
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return MILSet(path.stem, features, start.astype(np.int64), count.astype(np.int64), label, folds)


def training_scale(data: MILSet, bags: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (D,) and standard deviation (D,) over the instances of training bags; 1 where a feature does not vary."""
    rows = data.features[data.instances(bags)].astype(np.float64)
    deviation = rows.std(axis=0)
    return rows.mean(axis=0).astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)
