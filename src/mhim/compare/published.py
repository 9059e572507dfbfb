"""The main table of the oral (ICCV 2023), as printed: other slides, other features, another protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

NOTE = (
    "Oral: AUC in percent as published for CAMELYON16 (3 folds, 3 seeds, mean ± std over seeds; the epoch was chosen "
    "on the test fold, there was no validation part) and TCGA-NSCLC (4 folds, one seed, ± std over folds), ResNet-50 "
    "features, one RTX 3090 (ICCV 2023, table 1 and the talk). Other data, features, protocol and machine: these "
    "columns are there for orientation; nothing here is measured against them."
)


@dataclass(frozen=True)
class Published:
    """One row of the oral's table; None where it has no number.

    Attributes:
        camelyon16: AUC in percent, mean and standard deviation over seeds.
        tcga: AUC in percent on TCGA-NSCLC, mean and standard deviation over folds.
        parameters: of the deployed model, as printed.
        seconds_per_epoch: on CAMELYON16.
        memory_gb: peak on CAMELYON16, as printed.
    """

    camelyon16: tuple[float, float]
    tcga: tuple[float, float]
    parameters: str | None = None
    seconds_per_epoch: float | None = None
    memory_gb: float | None = None


ORAL: Mapping[str, Published] = MappingProxyType(
    {
        "max": Published((81.28, 3.74), (86.45, 0.71)),
        "mean": Published((80.07, 0.78), (90.13, 2.40)),
        "abmil": Published((94.00, 0.83), (93.17, 2.05), "657K", 4.0, 2.4),
        "dsmil": Published((94.57, 0.40), (93.71, 1.82)),
        "clam-sb": Published((94.65, 0.30), (93.67, 1.64)),
        "clam-mb": Published((94.70, 0.76), (93.69, 0.54), "789K", 4.3, 2.7),
        "transmil": Published((93.51, 2.13), (92.51, 1.76), "2.67M", 13.1, 10.6),
        "dtfd": Published((95.15, 0.14), (93.83, 1.39), "987K", 5.2, 2.1),
        "mhim-abmil": Published((96.14, 0.52), (94.97, 1.72), "657K", 4.3, 2.3),
        "mhim-transmil": Published((96.49, 0.48), (94.87, 2.17), "2.67M", 10.1, 5.5),
        "mhim-dsmil": Published((96.49, 0.65), (95.53, 1.74)),
    }
)
