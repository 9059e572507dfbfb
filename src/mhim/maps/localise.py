"""How well maps find the annotated tiles: per-slide scores, and their mean with a case-bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mhim.errors import FeatureError
from mhim.evaluation import BOOTSTRAP_SEED, RESAMPLES, Estimate
from mhim.maps.config import KINDS, MapKind
from mhim.maps.study import Study
from mhim.maps.underlay import INSIDE
from mhim.resampling import CaseDraws, percentile_interval
from mhim.training.runs import write_table

SCORES = ("auroc", "auprc")
FACTS = ("run", "slide_id", "case_id", "fold", "n_tiles", "n_inside")


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


def localisation_table(study: Study, maps: Sequence[MapKind] = KINDS) -> pd.DataFrame:
    """Scores of every tested slide that has annotated and other tiles, by every run.

    Slides without tile truth, or with one kind of tile, are skipped.

    Returns:
        One row a run and slide: run, slide_id, case_id, fold, n_tiles, n_inside, and per map
        ``<map>_auroc`` and ``<map>_auprc``, empty where the model has no such map. No rows without truth.
    """
    records: list[dict[str, object]] = []
    for slide_id in study.slides:
        for source in study.runs:
            if not source.bag_path(slide_id).is_file():
                continue
            try:
                bag = source.bag(slide_id)
                values = source.values(bag, slide_id)
            except FeatureError:
                if source.new_by is None:
                    raise
                break  # drawing the new slide says why
            if bag.annotation_fraction is None:
                break
            inside = bag.annotation_fraction >= INSIDE
            if inside.all() or not inside.any():
                break
            said = source.prediction(slide_id)
            record: dict[str, object] = dict(
                zip(FACTS, (source.slug, slide_id, said.case_id, said.fold, len(bag), int(inside.sum())), strict=True)
            )
            for kind in maps:
                of_tiles = values.of(kind)
                scores = {} if of_tiles is None else tile_scores(inside, of_tiles)
                record |= {f"{kind}_{name}": scores.get(name, np.nan) for name in SCORES}
            records.append(record)
    columns = [*FACTS, *(f"{kind}_{name}" for kind in maps for name in SCORES)]
    return pd.DataFrame(records, columns=columns)


@dataclass(frozen=True)
class Localisation:
    """Mean score of one map over slides.

    Attributes:
        run: slug of the run.
        kind: which map.
        n_slides: slides with both kinds of tiles.
        estimates: score name -> mean over slides with its interval.
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
                values = scored[f"{kind}_{name}"].to_numpy(dtype=np.float64)
                resampled = _weighted_mean(weights, values)
                mean = float(values.mean())
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


def read_localisation(path: Path) -> pd.DataFrame:
    """The per-slide scores in a file; ids stay text."""
    return pd.read_csv(path, dtype={"run": str, "slide_id": str, "case_id": str})


def _weighted_mean(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0)
