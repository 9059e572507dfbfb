"""Lesions found against false alarms a slide: detections from tile values, FROC, CAMELYON16's average sensitivity.

Source: Bunch et al., J. Appl. Photogr. Eng. 1978; the rates of the CAMELYON16 challenge (Bejnordi et al., JAMA 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

FALSE_ALARMS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a slide at which CAMELYON16 averages the sensitivity."""

NO_LESION = -1
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """What is pointed at on one slide.

    Attributes:
        confidence: (D,) the higher, the surer.
        lesion: (D,) int64 number of the lesion that is hit, ``NO_LESION`` for a false alarm.
        n_lesions: how many lesions the slide has; 0 for a normal slide.
    """

    confidence: Values
    lesion: NDArray[np.int64]
    n_lesions: int


@dataclass(frozen=True)
class Froc:
    """The curve, from the highest threshold to the lowest.

    Attributes:
        false_alarms: (T,) false positives a slide, rising from 0.
        sensitivity: (T,) share of lesions that some detection hits.
    """

    false_alarms: Values
    sensitivity: Values

    def at(self, rates: Sequence[float] = FALSE_ALARMS) -> Values:
        """Sensitivity at false positives a slide: linear between points, constant beyond the last."""
        return np.interp(np.asarray(rates), self.false_alarms, self.sensitivity)

    @property
    def average_sensitivity(self) -> float:
        """CAMELYON16's score: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide."""
        return float(self.at().mean())


def lesions_of_tiles(
    xy_px0: NDArray[np.floating | np.integer], inside: NDArray[np.bool_], tile_px0: float
) -> NDArray[np.int64]:
    """(N,) number of the lesion of each annotated tile, ``NO_LESION`` outside.

    Annotated tiles that touch, also at a corner, are one lesion; numbers rise in bag order.

    Args:
        xy_px0: (N, 2) corners, level-0 pixels.
        inside: (N,) whether a tile is annotated.
        tile_px0: side of a tile, level-0 pixels.
    """
    found = np.full(len(inside), NO_LESION, dtype=np.int64)
    members = np.flatnonzero(inside)
    if len(members) == 0:
        return found
    pairs = KDTree(np.asarray(xy_px0, dtype=np.float64)[members]).query_pairs(
        1.1 * tile_px0, p=np.inf, output_type="ndarray"
    )
    size = (len(members), len(members))
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=size)
    found[members] = connected_components(graph, directed=False)[1]
    return found


def detect(
    xy_px0: NDArray[np.floating | np.integer], values: Values, lesion: NDArray[np.int64], radius_px0: float
) -> Detections:
    """Local maxima of tile values: the highest tile is a detection and silences its neighbourhood, and so on.

    Args:
        xy_px0: (N, 2) corners, level-0 pixels.
        values: (N,) tile values; equal ones in bag order.
        lesion: (N,) as :func:`lesions_of_tiles` gives it.
        radius_px0: tiles within this distance along both axes are silenced.
    """
    xy = np.asarray(xy_px0, dtype=np.float64)
    neighbours = KDTree(xy).query_ball_point(xy, radius_px0, p=np.inf) if len(xy) else []
    free = np.ones(len(xy), dtype=bool)
    chosen = []
    for index in np.argsort(-values, kind="stable"):
        if free[index]:
            chosen.append(index)
            free[neighbours[index]] = False
    at = np.array(chosen, dtype=np.int64)
    return Detections(values[at], lesion[at], int(lesion.max(initial=NO_LESION)) + 1)


@dataclass(frozen=True)
class FrocEvents:
    """All that moves the curve, from the surest on: lesions at their best detection, and false alarms.

    Attributes:
        confidence: (E,) falling.
        is_hit: (E,) whether the event finds a lesion; else it is a false alarm.
        slide: (E,) int64 index of its slide.
        lesions: (S,) lesions of each slide.
    """

    confidence: Values
    is_hit: NDArray[np.bool_]
    slide: NDArray[np.int64]
    lesions: NDArray[np.int64]

    @classmethod
    def of(cls, slides: Sequence[Detections]) -> FrocEvents:
        """A lesion counts once, at its surest detection; further detections in it count as nothing."""
        confidence, is_hit, owner = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=np.int64)]
        for number, each in enumerate(slides):
            best = np.full(each.n_lesions, -np.inf)
            hits = each.lesion != NO_LESION
            np.maximum.at(best, each.lesion[hits], each.confidence[hits])
            found = best[np.isfinite(best)]
            alarms = each.confidence[~hits]
            confidence.append(np.concatenate([found, alarms]))
            is_hit.append(np.repeat([True, False], [len(found), len(alarms)]))
            owner.append(np.full(len(found) + len(alarms), number))
        together = np.concatenate(confidence)
        order = np.argsort(-together, kind="stable")
        lesions = np.array([each.n_lesions for each in slides], dtype=np.int64)
        return cls(together[order], np.concatenate(is_hit)[order], np.concatenate(owner)[order], lesions)

    def until(self, false_alarms: float) -> FrocEvents:
        """Without the events beyond so many false alarms a slide, where no rate of interest lies."""
        beyond = (~self.is_hit).cumsum() > false_alarms * len(self.lesions)
        end = int(np.argmax(beyond)) if beyond.any() else len(beyond)
        return FrocEvents(self.confidence[:end], self.is_hit[:end], self.slide[:end], self.lesions)

    def curve(self, weights: Values | None = None) -> Froc | None:
        """The curve; None without a slide or a lesion.

        Args:
            weights: (S,) how often each slide counts; by default once.
        """
        weighing = np.ones(len(self.lesions)) if weights is None else weights
        n_lesions, n_slides = float(weighing @ self.lesions), float(weighing.sum())
        if n_lesions <= 0 or n_slides <= 0:
            return None
        drawn = weighing[self.slide]
        last = np.flatnonzero(np.append(np.diff(self.confidence) != 0, True)[: len(drawn)])
        hits, alarms = (drawn * self.is_hit).cumsum()[last], (drawn * ~self.is_hit).cumsum()[last]
        return Froc(np.append(0.0, alarms / n_slides), np.append(0.0, hits / n_lesions))


def froc(slides: Sequence[Detections]) -> Froc | None:
    """The curve of some slides, lesions and normal slides pooled; None without a lesion."""
    return FrocEvents.of(slides).curve()
