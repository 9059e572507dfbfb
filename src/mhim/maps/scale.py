"""From raw values to colour and opacity: one scale per kind of map, always readable in raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mhim.maps.config import MapKind

COLOUR_MAPS: dict[MapKind, str] = {
    "attention": "viridis",
    "attention-score": "viridis",
    "probability": "plasma",
    "contribution": "coolwarm",
}
PROBABILITY_SPAN = 0.1


@dataclass(frozen=True)
class Scale:
    """How the values of one kind of map become colour.

    Attention runs from 0 to the highest weight, and at least to twice the uniform weight, so that even
    attention does not look like a peak. Probability runs from chance (1/C, the value of a tile that says
    nothing) to the highest value, and at least 0.1 further, so that noise does not look like tumour; what
    lies below chance is as good as invisible. Contribution runs symmetrically around 0. The score before the softmax
    runs from the lowest to the highest: it has no zero of its own.

    Attributes:
        kind: which map.
        low, high: raw values at the ends of the colour bar.
        mark: a raw value worth a tick of its own (uniform attention), or None.
        opacity: of the strongest value.
        least_opacity: of the weakest value.
    """

    kind: MapKind
    low: float
    high: float
    mark: float | None
    opacity: float = 0.85
    least_opacity: float = 0.12

    @classmethod
    def fit(
        cls, kind: MapKind, values: Sequence[NDArray[np.float64]], n_classes: int, opacity: float, least_opacity: float
    ) -> Scale:
        """The scale that the given slides, or one slide by several models, share.

        Args:
            kind: which map.
            values: one (N,) array per map that shares the scale.
            n_classes: number of classes C.
            opacity: of the strongest value.
            least_opacity: of the weakest value.
        """
        together = np.concatenate(values)
        lowest, highest = float(together.min()), float(together.max())
        mark = None
        if kind == "attention":
            mark = 1 / min(len(part) for part in values) if lowest >= 0 else None
            low, high = min(lowest, 0.0), max(highest, 2 * (mark or 0.0))
        elif kind == "attention-score":
            low, high = lowest, highest
        elif kind == "probability":
            low = 1 / n_classes
            high = min(1.0, max(highest, low + PROBABILITY_SPAN))
        else:
            high = max(abs(lowest), abs(highest))
            low = -high
        return cls(kind, low, high if high > low else low + 1.0, mark, opacity, least_opacity)

    def colours(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """RGBA in [0, 1] of any array of raw values, shape (..., 4); transparent where NaN."""
        from matplotlib import colormaps

        position = np.clip((np.nan_to_num(values, nan=self.low) - self.low) / (self.high - self.low), 0, 1)
        strength = np.abs(2 * position - 1) if self.kind == "contribution" else position
        rgba = colormaps[COLOUR_MAPS[self.kind]](position)
        rgba[..., 3] = np.where(
            np.isnan(values), 0.0, self.least_opacity + (self.opacity - self.least_opacity) * strength
        )
        return rgba

    def ticks(self) -> list[float]:
        """Round raw values along the colour bar, ends included where they are round."""
        from matplotlib.ticker import MaxNLocator

        candidates = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in candidates if self.low - slack <= value <= self.high + slack]

    def text(self, value: float) -> str:
        """A raw value as text, with as many digits as the scale needs."""
        plus = "+" if self.kind == "contribution" and value > 0 else ""
        return "0" if value == 0 else f"{plus}{value:.3g}"
