"""Scores of the maps against annotations, as tables: tiles ranked, tiles called, lesions found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mhim.evaluation import format_estimate
from mhim.froc import FALSE_ALARMS
from mhim.maps import KINDS, summarise_localisation
from mhim.maps.panel import NAMES
from mhim.maps.study import unique_slugs
from mhim.report.table import Table, number, run_name, with_interval
from mhim.training.runs import Run


def localisation_tables(scores: pd.DataFrame, froc: pd.DataFrame, runs: Sequence[Run], resamples: int) -> list[Table]:
    """Tile scores and FROC of every map and run; runs of one map follow each other. Empty without tile truth.

    Args:
        scores: one row a run and slide, as ``maps.localise`` gives it.
        froc: one row a run and map, as ``maps.lesions`` gives it.
        runs: the runs of the report.
        resamples: bootstrap resamples over cases.
    """
    names = {slug: run_name(run, runs) for slug, run in zip(unique_slugs(runs), runs, strict=True)}
    found = (_tiles(scores, names, resamples), _lesions(froc, names))
    return [table for table in found if table is not None]


def _tiles(scores: pd.DataFrame, names: Mapping[str, str], resamples: int) -> Table | None:
    entries = [entry for entry in summarise_localisation(scores, resamples) if entry.run in names]
    if not entries:
        return None
    with_dice = any("dice" in entry.estimates for entry in entries)
    rows = []
    for entry in entries:
        row = [f"{NAMES[entry.kind]}, {names[entry.run]}", str(entry.n_slides)]
        row += [format_estimate(entry.estimates.get(name)) for name in ("auroc", "auprc")]
        row.append(format_estimate(entry.difference.get("auprc"), sign=True))
        rows.append([*row, *([format_estimate(entry.estimates.get("dice"))] if with_dice else [])])
    header = ["map", "slides", "tile AUROC [95 % CI]", "tile AUPRC [95 % CI]", "difference in AUPRC"]
    caption = "Tiles: mean over slides that hold annotated and other tiles"
    if with_dice:
        caption += "; Dice at the threshold that the annotated validation slides of the fold suggest"
    return Table(caption, [*header, *(["Dice [95 % CI]"] if with_dice else [])], rows)


def _lesions(froc: pd.DataFrame, names: Mapping[str, str]) -> Table | None:
    if froc.empty:
        return None
    rows = []
    for kind in KINDS:
        for record in froc.to_dict("records"):
            if record["map"] != kind or record["run"] not in names:
                continue
            limits = {key: None if pd.isna(record[key]) else float(record[key]) for key in ("average", "low", "high")}
            at = [number(float(record[f"at_{rate:g}"])) for rate in FALSE_ALARMS]
            rows.append([f"{NAMES[kind]}, {names[str(record['run'])]}", with_interval(limits, "average"), *at])
    if not rows:
        return None
    lesions, slides = froc["n_lesions"].max(), froc["n_slides"].max()
    caption = (
        f"Lesions (FROC): share of {lesions} lesions on {slides} slides that is found at so many false alarms a slide, "
        f"and the mean of these (CAMELYON16's score) with its 95 % interval over cases"
    )
    return Table(caption, ["map", "mean [95 % CI]", *(f"at {rate:g}" for rate in FALSE_ALARMS)], rows)
