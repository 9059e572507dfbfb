"""A pool of real patch features, split into what differs between groups, between classes, and within."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mhim.errors import FeatureError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FeaturePool:
    """Patch features, standardised, the normal mean of each group taken out.

    Attributes:
        features: (P, D) features less the mean of the normal patches of their group.
        label: (P,) 1 tumour, 0 normal.
        group: (P,) index of the group (patient).
        group_means: (G, D) means of the groups' normal patches, less their own mean.
        score: (P,) tumour-likeness, a ridge discriminant of the whole pool.
        spread: (D,) standard deviation of the normal patches within groups.
    """

    features: Array
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    group_means: Array
    score: Array
    spread: Array

    @property
    def difference(self) -> Array:
        """(D,) mean of tumour less mean of normal, within groups."""
        return self.features[self.label == 1].mean(axis=0) - self.features[self.label == 0].mean(axis=0)

    def groups_with(self, label: int) -> NDArray[np.int64]:
        """Ascending groups that have a patch of the class."""
        return np.unique(self.group[self.label == label])


def read_pool(path: Path, components: int = 0) -> FeaturePool:
    """Read and prepare a pool.

    Features are standardised over the pool; ``components`` principal components of that are kept (0: all
    features), each in its own scale. Groups without a normal patch are left out. The score is the linear
    discriminant ``x (S + 0.1 tr(S)/D I)^-1 (m1 - m0)`` of the group-centred features, S their covariance
    within classes.

    Args:
        path: NPZ with ``features`` (P, D) floating, ``label`` (P,) 0 or 1, ``group`` (P,) any.
        components: at most min(P, D).

    Raises:
        FeatureError: not such a file, values that are not finite, one class only, or too many components.
    """
    features, label, group = _read(path)
    deviation = features.std(axis=0)
    x = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if components > min(x.shape):
        raise FeatureError(f"{path}: {components} components of {x.shape[0]} patches with {x.shape[1]} features")
    if components:
        _, _, axes = np.linalg.svd(x, full_matrices=False)
        axes = axes[:components] * np.sign(axes[:components].sum(axis=1, keepdims=True))
        x = x @ axes.T
    names, index = np.unique(group, return_inverse=True)
    normal = np.bincount(index[label == 0], minlength=len(names))
    kept = normal[index] > 0
    _, index = np.unique(index[kept], return_inverse=True)
    x, label = x[kept], label[kept]
    means = np.stack([x[(index == g) & (label == 0)].mean(axis=0) for g in range(index.max() + 1)])
    x = x - means[index]
    return FeaturePool(x, label, index, means - means.mean(axis=0), _score(x, label), x[label == 0].std(axis=0))


def _read(path: Path) -> tuple[Array, NDArray[np.int64], NDArray[np.str_]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("features", "label", "group") if key not in file]
            if missing:
                found = ", ".join(file) or "nothing"
                raise FeatureError(f"{path}: no array {', '.join(missing)} (found: {found})")
            features, label, group = (np.asarray(file[key]) for key in ("features", "label", "group"))
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file; give a pool of patch features with --pool") from None
    except (OSError, ValueError) as error:
        raise FeatureError(f"{path}: not a readable NPZ file ({error})") from None
    if features.ndim != 2 or label.shape != group.shape or label.shape != features.shape[:1]:
        shapes = f"features {features.shape}, label {label.shape}, group {group.shape}"
        raise FeatureError(f"{path}: shapes do not fit: {shapes}; expected (P, D), (P,), (P,)")
    if features.dtype.kind != "f" or not np.isfinite(features).all():
        raise FeatureError(f"{path}: features must be finite floating-point numbers")
    if set(np.unique(label).tolist()) != {0, 1}:
        raise FeatureError(f"{path}: labels must be 0 (normal) and 1 (tumour), both present")
    return features.astype(np.float64), label.astype(np.int64), group.astype(str)


def _score(x: Array, label: NDArray[np.int64]) -> Array:
    means = np.stack([x[label == value].mean(axis=0) for value in (0, 1)])
    within = np.cov(x - means[label], rowvar=False).reshape(x.shape[1], x.shape[1])
    ridge = 0.1 * np.trace(within) / len(within) + 1e-12
    return x @ np.linalg.solve(within + ridge * np.eye(len(within)), means[1] - means[0])
