"""What a slide is made of, in micrometres: regions, outlines, folds, and the look of a case."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

FIELD_UM = 8.0
"""Cell of the coarse fields [um]."""


class Region(IntEnum):
    """What a pixel of a slide is; the tumour masks are read from these."""

    GLASS = 0
    STROMA = 1
    FAT = 2
    EPITHELIUM = 3
    LUMEN = 4
    LYMPHOID = 5
    CRUSHED = 6
    VESSEL = 7
    SUBTLE = 8
    SALIENT = 9


@dataclass(frozen=True)
class Shape:
    """A closed outline, float64 (point, 2) [um], and what is inside."""

    region: Region
    outline_um: np.ndarray


@dataclass(frozen=True)
class Fold:
    """A fold of the tissue: a line, float64 (point, 2) [um], and the width of the doubled band [um]."""

    line_um: np.ndarray
    width_um: float


@dataclass(frozen=True)
class Style:
    """How the tissue of a case looks; drawn without regard to its label."""

    glands: float
    fat: float
    lymphoid: float
    cellularity: float
    haematoxylin: float
    eosin: float


@dataclass(frozen=True)
class Layout:
    """Everything on one slide.

    Attributes:
        size_um: width and height.
        tissue: float32 (row, column) at ``FIELD_UM``, positive in tissue.
        grain_angle: main direction of the fibres [rad].
        bend_um: float32 (2, row, column), displacement of the fibres in x and y.
        density: float32 (row, column), cells relative to usual.
        shapes: outlines in drawing order, the tumour last.
        folds: folds of the tissue.
        style: look of the case.
    """

    size_um: tuple[float, float]
    tissue: np.ndarray
    grain_angle: float
    bend_um: np.ndarray
    density: np.ndarray
    shapes: tuple[Shape, ...]
    folds: tuple[Fold, ...]
    style: Style
