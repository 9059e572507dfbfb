"""How well maps find the annotated tiles: per-slide scores, their mean with a case-bootstrap interval, and FROC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mhim.bag import Bag
from mhim.errors import FeatureError
from mhim.evaluation import BOOTSTRAP_SEED, RESAMPLES, Estimate
from mhim.maps.config import KINDS, MapKind
from mhim.maps.lesions import FrocCollector, OperatingPoints, comparable, dice
from mhim.maps.study import RunMaps, Study
from mhim.maps.underlay import INSIDE
from mhim.maps.values import TileValues
from mhim.resampling import CaseDraws, percentile_interval
from mhim.training.runs import write_table

SCORES = ("auroc", "auprc", "dice")
FACTS = ("run", "slide_id", "case_id", "fold", "n_tiles", "n_inside", "n_lesions")


def tile_scores(inside: NDArray[np.bool_], values: NDArray[np.float64]) -> dict[str, float]:
    """AUROC and average precision of tile values against the annotation.

    Args:
        inside: (N,) whether at least half of a tile is annotated; both kinds are present.
        values: (N,) the higher, the more a tile is said to be inside.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(inside, values)),
        "auprc": float(average_precision_score(inside, values)),
    }


@dataclass(frozen=True)
class LocalisedStudy:
    """Scores against the annotations.

    Attributes:
        table: one row a run and slide that has annotated and other tiles: run, slide_id, case_id, fold, n_tiles,
            n_inside, n_lesions, and per map ``<map>_auroc``, ``<map>_auprc``, ``<map>_dice``; a score is empty where
            the model has no such map, Dice also where no validation slide of the fold is annotated.
        froc: one row a run and map over all slides with tile truth; see ``lesions.FrocCollector``.
    """

    table: pd.DataFrame
    froc: pd.DataFrame


def localise(study: Study, maps: Sequence[MapKind] = KINDS, resamples: int = RESAMPLES) -> LocalisedStudy:
    """Score the maps of every tested slide that has tile truth, by every run; slides without are skipped.

    Dice is taken at the threshold that the annotated validation slides of the slide's fold suggest.
    """
    records: list[dict[str, object]] = []
    lesions = FrocCollector()
    points = {source.slug: OperatingPoints(source, maps) for source in study.runs}
    for slide_id in study.slides:
        for source in study.runs:
            seen = _seen(source, slide_id)
            if seen is None:
                continue
            bag, values = seen
            if bag.annotation_fraction is None:
                break
            said = source.prediction(slide_id)
            n_lesions = lesions.add(source.slug, said.case_id, bag, values, maps)
            inside = bag.annotation_fraction >= INSIDE
            if inside.all() or not inside.any():
                continue
            facts = (source.slug, slide_id, said.case_id, said.fold, len(bag), int(inside.sum()), n_lesions)
            record: dict[str, object] = dict(zip(FACTS, facts, strict=True))
            for kind in maps:
                scores = _map_scores(inside, values, kind, points[source.slug].of_fold(said.fold)[kind])
                record |= {f"{kind}_{name}": scores.get(name, np.nan) for name in SCORES}
            records.append(record)
    columns = [*FACTS, *(f"{kind}_{name}" for kind in maps for name in SCORES)]
    return LocalisedStudy(pd.DataFrame(records, columns=columns), lesions.table(resamples))


def localisation_table(study: Study, maps: Sequence[MapKind] = KINDS) -> pd.DataFrame:
    """The table of :func:`localise` alone."""
    return localise(study, maps, resamples=1).table


def _seen(source: RunMaps, slide_id: str) -> tuple[Bag, TileValues] | None:
    """Bag and maps of a slide, None without a bag; a new slide that cannot be drawn has none either."""
    if not source.bag_path(slide_id).is_file():
        return None
    try:
        bag = source.bag(slide_id)
        return bag, source.values(bag, slide_id)
    except FeatureError:
        if source.new_by is None:
            raise
        return None  # drawing the new slide says why


def _map_scores(
    inside: NDArray[np.bool_], values: TileValues, kind: MapKind, threshold: float | None
) -> dict[str, float]:
    of_tiles = comparable(values, kind)
    if of_tiles is None:
        return {}
    scores = tile_scores(inside, of_tiles)
    return scores if threshold is None else scores | {"dice": dice(inside, of_tiles >= threshold)}


@dataclass(frozen=True)
class Localisation:
    """Mean score of one map over slides.

    Attributes:
        run: slug of the run.
        kind: which map.
        n_slides: slides with both kinds of tiles.
        estimates: score name -> mean over slides with its interval; without Dice where no slide has one.
        difference: score name -> difference to the first run on the same draws; empty for the first run.
    """

    run: str
    kind: MapKind
    n_slides: int
    estimates: dict[str, Estimate]
    difference: dict[str, Estimate]


def summarise_localisation(table: pd.DataFrame, resamples: int = RESAMPLES) -> list[Localisation]:
    """One entry a map and run; runs of one map follow each other, the first is what others are compared with.

    The interval is a percentile bootstrap over cases; differences are paired.

    Args:
        table: as :func:`localisation_table` gives it.
        resamples: bootstrap resamples.
    """
    if table.empty:
        return []
    draws = CaseDraws.draw(table["case_id"].astype(str).tolist(), resamples, BOOTSTRAP_SEED)
    entries: list[Localisation] = []
    for kind in KINDS:
        first: dict[str, tuple[float, NDArray[np.float64]]] = {}
        if f"{kind}_auroc" not in table.columns:
            continue
        for run, part in table.groupby("run", sort=False):
            scored = part.dropna(subset=[f"{kind}_auroc"])
            if scored.empty:
                continue
            weights = draws.weights(scored["case_id"].to_numpy(dtype=np.str_))
            estimates, difference = {}, {}
            for name in SCORES:
                if f"{kind}_{name}" not in scored:  # a table of an earlier version
                    continue
                values = scored[f"{kind}_{name}"].to_numpy(dtype=np.float64)
                known = np.isfinite(values)
                if not known.any():
                    continue
                resampled = _weighted_mean(weights[:, known], values[known])
                mean = float(values[known].mean())
                estimates[name] = Estimate(mean, percentile_interval(resampled))
                if name in first:
                    reference, other = first[name]
                    difference[name] = Estimate(mean - reference, percentile_interval(resampled - other))
                else:
                    first[name] = (mean, resampled)
            entries.append(Localisation(str(run), kind, len(scored), estimates, difference))
    return entries


def write_localisation(path: Path, table: pd.DataFrame) -> None:
    """Write the per-slide scores."""
    write_table(path, table)


def read_froc(path: Path) -> pd.DataFrame:
    """The FROC table in a file."""
    return pd.read_csv(path, dtype={"run": str, "map": str})


def read_localisation(path: Path) -> pd.DataFrame:
    """The per-slide scores in a file; ids stay text."""
    return pd.read_csv(path, dtype={"run": str, "slide_id": str, "case_id": str})


def _weighted_mean(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0)
