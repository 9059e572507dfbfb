"""Does MHIM find what its baseline misses? Two-stage runs of several seeds against their own baselines.

python benchmarks/mhim_study.py RUN... [--cohort cohort.csv]

Each RUN is a run of ``mhim train --method mhim-v1`` (or v2) with its ``baseline`` inside, or RUN=BASELINE where that
is elsewhere. Runs of one configuration are its seeds. Prints, per configuration, the mean over folds and seeds of the
slide AUROC, and on tumour slides, by the model that never saw them: AUPRC and AUROC of the tiles, and the recall of
tumour tiles at 5 % false positives among the slide's other tiles, apart for salient and subtle tumour where the truth
tells them apart (annotation pictures of ``mhim synth``: 255 and 128; bags with ``instance_kind``: 1 and 2).
Intervals: 95 % percentile bootstrap over cases, differences on the same draws; slides are averaged over seeds first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from mhim.bag import Bag
from mhim.cohort import read_cohort
from mhim.evaluation import RESAMPLES, Estimate, format_estimate, summarise
from mhim.maps.study import RunMaps
from mhim.resampling import CaseDraws, percentile_interval
from mhim.training.runs import Run, open_run

FALSE_POSITIVES = 0.05
SALIENT, SUBTLE = 1, 2
MAPS = ("probability", "attention")
SCORES = ("AUPRC", "AUROC", "recall of salient", "recall of subtle")


def tile_kinds(bag: Bag, path: Path, annotation: Path | None) -> np.ndarray | None:
    """(N,) 0 normal, 1 salient, 2 subtle tumour; tumour of unknown kind counts as salient; None without truth."""
    with h5py.File(path) as file:
        if "instance_kind" in file:
            return np.asarray(file["instance_kind"])
    if bag.annotation_fraction is None:
        return None
    kinds = np.where(bag.annotation_fraction >= 0.5, SALIENT, 0)
    if annotation is not None:
        with Image.open(annotation) as picture:
            drawn = np.asarray(picture)
        scale = bag.attributes["level0_width"] / drawn.shape[1]
        side = max(1, round(bag.tile_size_px0 / scale))
        for index in np.flatnonzero(kinds):
            x, y = (round(value / scale) for value in bag.xy_px0[index])
            inside = drawn[y : y + side, x : x + side]
            if (inside == 128).sum() > (inside == 255).sum():
                kinds[index] = SUBTLE
    return kinds


def scores_of(values: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """The scores of one map of one slide; NaN where a kind is absent."""
    inside = kinds > 0
    cut = np.quantile(values[~inside], 1 - FALSE_POSITIVES)
    found = {
        f"recall of {name}": float((values[kinds == kind] > cut).mean()) if (kinds == kind).any() else np.nan
        for name, kind in (("salient", SALIENT), ("subtle", SUBTLE))
    }
    both = {"AUPRC": average_precision_score(inside, values), "AUROC": roc_auc_score(inside, values)}
    return {name: float(value) for name, value in both.items()} | found


def slide_scores(run: Run, annotations: dict[str, Path | None]) -> dict[str, tuple[str, np.ndarray]]:
    """Each slide's (case, (maps, scores)) over the tumour slides of a run."""
    source = RunMaps(run, "run")
    rows = {}
    for slide_id in source.slides:
        bag = source.bag(slide_id)
        kinds = tile_kinds(bag, source.bag_path(slide_id), annotations.get(slide_id))
        if kinds is None or not (kinds > 0).any() or (kinds > 0).all():
            continue
        values = source.values(bag, slide_id)
        table = np.full((len(MAPS), len(SCORES)), np.nan)
        for row, kind in enumerate(MAPS):
            of_tiles = values.of(kind)
            if of_tiles is not None:
                said = scores_of(of_tiles, kinds)
                table[row] = [said[name] for name in SCORES]
        rows[slide_id] = (source.prediction(slide_id).case_id, table)
    return rows


def mean_and_interval(values: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over slides that define a value, and its (B,) resampled means."""
    defined = np.isfinite(values)
    total = weights[:, defined].sum(axis=1)
    resampled = np.divide(
        weights[:, defined] @ values[defined], total, out=np.full_like(total, np.nan), where=total > 0
    )
    return float(values[defined].mean()), resampled


def tile_rows(pairs: Sequence[tuple[Run, Run]], annotations: dict[str, Path | None]) -> list[list[str]]:
    """Table rows of the tile scores of one configuration."""
    sides = [[slide_scores(run, annotations) for run in side] for side in zip(*pairs, strict=True)]
    slides = sorted(sides[0][0])
    if not slides:
        return []
    cases = np.array([sides[0][0][slide][0] for slide in slides])
    weights = CaseDraws.draw(list(cases), RESAMPLES, 0).weights(cases)
    means = [np.stack([np.mean([seed[s][1] for seed in side], axis=0) for s in slides]) for side in sides]
    rows = []
    for score, name in enumerate(SCORES):
        for row, kind in enumerate(MAPS):
            plain, mhim = (side[:, row, score] for side in means)
            if not np.isfinite(plain).any():
                continue
            count = int(np.isfinite(plain).sum())
            (a, drawn_a), (b, drawn_b) = (mean_and_interval(side, weights) for side in (plain, mhim))
            estimates = [Estimate(a, percentile_interval(drawn_a)), Estimate(b, percentile_interval(drawn_b))]
            difference = Estimate(b - a, percentile_interval(drawn_b - drawn_a))
            text = [format_estimate(estimate) for estimate in estimates]
            rows.append([f"tile {name}, {kind} ({count} slides)", *text, format_estimate(difference, sign=True)])
    return rows


def main(runs: Sequence[str], table: Path | None) -> None:
    """Print the tables."""
    annotations = {} if table is None else {row.slide_id: row.annotation for row in read_cohort(table)}
    groups: dict[str, list[tuple[Run, Run]]] = {}
    for given_run in runs:
        path, _, baseline = given_run.partition("=")
        run = open_run(Path(path))
        groups.setdefault(run.config.recipe, []).append((open_run(Path(baseline or f"{path}/baseline")), run))
    for pairs in groups.values():
        plain, mhim = (list(side) for side in zip(*pairs, strict=True))
        first, second = summarise([*plain, *mhim])
        print(f"\n{second.title}, {len(pairs)} seeds, {second.n_folds} fits\n")
        print("| | baseline | MHIM | difference |\n| --- | --- | --- | --- |")
        for metric in ("auroc", "auprc", "balanced_accuracy"):
            cells = [format_estimate(side.estimates[metric]) for side in (first, second)]
            print(f"| slide {metric} | {' | '.join(cells)} | {format_estimate(second.difference[metric], sign=True)} |")
        for row in tile_rows(pairs, annotations):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--cohort", type=Path)
    given = parser.parse_args()
    main(given.runs, given.cohort)
