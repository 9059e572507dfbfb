"""Tiles called annotated at an operating point (Dice), and lesions found against false alarms (FROC), for each map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mhim.bag import Bag, load_bag
from mhim.errors import FeatureError
from mhim.evaluation import BOOTSTRAP_SEED
from mhim.froc import FALSE_ALARMS, Detections, FrocEvents, detect, lesions_of_tiles
from mhim.maps.config import MapKind
from mhim.maps.lattice import tile_size_or_step
from mhim.maps.study import RunMaps
from mhim.maps.underlay import INSIDE
from mhim.maps.values import TileValues, tile_values
from mhim.resampling import CaseDraws, percentile_interval

SILENCED_TILES = 1.5
"""A detection silences tiles whose corners lie within this many tile sides of its own, along both axes."""

MANY_FALSE_ALARMS = 64.0
"""False positives a slide from which on detections are dropped; far beyond the rates that are read."""

FROC_FACTS = ("run", "map", "n_slides", "n_lesions")
FROC_COLUMNS = (*FROC_FACTS, *(f"at_{rate:g}" for rate in FALSE_ALARMS), "average", "low", "high")

Values = NDArray[np.float64]


def comparable(values: TileValues, kind: MapKind) -> Values | None:
    """(N,) map values on one scale for all slides: attention as multiples of an even spread, the others as they are."""
    of_tiles = values.of(kind)
    return of_tiles * len(of_tiles) if kind == "attention" and of_tiles is not None else of_tiles


def dice(inside: NDArray[np.bool_], called: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty. Source: Dice, Ecology 1945."""
    total = int(inside.sum()) + int(called.sum())
    return 2 * int((inside & called).sum()) / total if total else 1.0


def best_dice_threshold(inside: NDArray[np.bool_], values: Values) -> float | None:
    """Threshold (called at >= it) with the highest Dice over pooled tiles; None without an annotated tile.

    Among equal ones the highest.
    """
    if not inside.any():
        return None
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    hits = inside[order].cumsum()[last]
    return float(values[order][last[int(np.argmax(2 * hits / (inside.sum() + last + 1)))]])


@dataclass
class OperatingPoints:
    """Thresholds of a run's maps, chosen on the annotated validation slides of a fold; computed once."""

    source: RunMaps
    maps: Sequence[MapKind]
    _known: dict[int, dict[MapKind, float | None]] = field(default_factory=dict)

    def of_fold(self, fold: int) -> dict[MapKind, float | None]:
        """Threshold per map on :func:`comparable` values; None where validation slides have no annotated tile."""
        if fold not in self._known:
            model = self.source.model(fold)
            seen = [(bag, tile_values(model, bag)) for bag in self._validation_bags(fold)]
            self._known[fold] = {kind: _threshold(seen, kind) for kind in self.maps}
        return self._known[fold]

    def _validation_bags(self, fold: int) -> Iterator[Bag]:
        table = self.source.run.predictions(fold)
        for slide_id in table.loc[table["part"] == "val", "slide_id"]:
            path = self.source.run.config.features / f"{slide_id}.h5"
            if path.is_file():
                bag = load_bag(path)
                if bag.annotation_fraction is not None:
                    yield bag


def _threshold(seen: Sequence[tuple[Bag, TileValues]], kind: MapKind) -> float | None:
    pairs = [(bag.annotation_fraction, comparable(values, kind)) for bag, values in seen]
    known = [(truth >= INSIDE, said) for truth, said in pairs if truth is not None and said is not None]
    if not known:
        return None
    return best_dice_threshold(np.concatenate([inside for inside, _ in known]), np.concatenate([s for _, s in known]))


@dataclass
class FrocCollector:
    """Detections of every run and map, slide by slide, also on slides without a lesion."""

    _found: dict[tuple[str, MapKind], list[tuple[str, Detections]]] = field(default_factory=dict)

    def add(self, run: str, case_id: str, bag: Bag, values: TileValues, maps: Sequence[MapKind]) -> int:
        """Take one slide with tile truth; the number of its lesions. Bags without coordinates are left out."""
        if bag.annotation_fraction is None or bag.xy_px0 is None:
            return 0
        try:
            tile_px0, _ = tile_size_or_step(bag.xy_px0, bag.tile_size_px0, bag.slide_id)
        except FeatureError:
            return 0
        lesion = lesions_of_tiles(bag.xy_px0, bag.annotation_fraction >= INSIDE, tile_px0)
        for kind in maps:
            said = comparable(values, kind)
            if said is not None:
                found = detect(bag.xy_px0, said, lesion, SILENCED_TILES * tile_px0)
                self._found.setdefault((run, kind), []).append((case_id, found))
        return int(lesion.max(initial=-1)) + 1

    def table(self, resamples: int) -> pd.DataFrame:
        """One row a run and map: sensitivity at each rate of false alarms, their average with its interval over cases.

        Slides are pooled, so the curve is one for all folds: it asks that confidences mean the same in each.
        """
        records = []
        for (run, kind), slides in self._found.items():
            events = FrocEvents.of([found for _, found in slides]).until(MANY_FALSE_ALARMS)
            curve = events.curve()
            if curve is None:
                continue
            cases = np.array([case_id for case_id, _ in slides], dtype=np.str_)
            weights = CaseDraws.draw(cases.tolist(), resamples, BOOTSTRAP_SEED).weights(cases)
            drawn = [np.nan if (each := events.curve(row)) is None else each.average_sensitivity for row in weights]
            low, high = percentile_interval(np.array(drawn)) or (np.nan, np.nan)
            facts = (run, kind, len(slides), int(events.lesions.sum()))
            numbers = (*curve.at().tolist(), curve.average_sensitivity, low, high)
            records.append(dict(zip(FROC_COLUMNS, (*facts, *numbers), strict=True)))
        return pd.DataFrame(records, columns=list(FROC_COLUMNS))
