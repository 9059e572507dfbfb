"""The report: everything gathered into one context, and the page made from it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mhim
from mhim.artefacts import write_text
from mhim.config import to_yaml
from mhim.errors import ConfigError
from mhim.evaluation import Estimate, Summary, evaluate_run, format_estimate, summarise, table_rows
from mhim.maps.study import read_test_predictions
from mhim.metrics import METRICS
from mhim.report.cautions import cautions
from mhim.report.config import ReportConfig
from mhim.report.curves import curves, training
from mhim.report.further import further_tables
from mhim.report.localised import localisation_tables
from mhim.report.mining import mining, mining_table
from mhim.report.pictures import Gallery, make_gallery
from mhim.report.survival import (
    WORDS as SURVIVAL_WORDS,
)
from mhim.report.survival import (
    case_table,
    data_rows,
    fold_rows,
    result_rows,
    survival_cautions,
    survival_curves,
)
from mhim.report.table import Table, number, run_name, with_interval
from mhim.training.runs import Run

LIBRARIES = ("torch", "numpy", "scikit-learn", "pandas")
METRIC_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "f1": "F1"}


WORDS = {
    "metric": "AUROC",
    "lead": "What is learned from slide-level labels alone, tested on cases that the models never saw.",
    "curves": "Bands are bootstrap intervals of the pooled curve. Calibration: of slides said to be positive with "
    "probability p, a share of p should be; training does not aim at this, and no recalibration was done.",
    "units": "Slides",
    "filter": "only wrong ones",
    "search": "slide, case, class",
    "caption": "Test prediction of every slide",
}


def write_report(runs: Sequence[Run], out: Path, config: ReportConfig, maps: Path | None = None) -> None:
    """Write one self-contained HTML file: opens offline, asks for nothing from outside.

    Equal runs, maps and options give equal bytes.

    Args:
        runs: complete runs that tested the same cases; the first is what the others are compared with.
        out: the HTML file.
        config: see :class:`ReportConfig`.
        maps: folder that ``mhim heatmap`` wrote for these runs; None draws what is shown.

    Raises:
        ConfigError: no run was given.
        CohortError: the runs tested different cases.
        ArtefactError: ``maps`` holds no maps, or maps of other runs.
    """
    if not runs:
        raise ConfigError("give at least one run folder")
    write_text(out, render(gather(runs, out, config, maps)))


def render(context: dict[str, Any]) -> str:
    """The page of a context."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (Markup((here / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(context, style=style, script=script)


def gather(runs: Sequence[Run], out: Path, config: ReportConfig, maps: Path | None) -> dict[str, Any]:
    """Everything the page shows, by name."""
    summaries = summarise(runs, config.resamples)
    metrics = [evaluate_run(run, config.resamples) for run in runs]
    header, rows = table_rows(summaries)
    kind = _survival if runs[0].config.task.name == "survival" else _classification
    return {
        "date": config.date,
        "version": mhim.__version__,
        "protocol": _protocol(runs, config),
        "headlines": [_headline(summary) for summary in summaries],
        "results": [Table("Mean over folds with 95 % intervals", header, rows)],
        "training": [(run_name(run, runs), training(run)) for run in runs],
        "mining": [(run_name(run, runs), figures) for run in runs if (figures := mining(run))],
        "mined": mining_table(runs, [run_name(run, runs) for run in runs]),
        **kind(runs, metrics, summaries, config, maps),
        "runs_last": run_name(runs[-1], runs),
        "reproduce": [_reproduce(run, runs) for run in runs],
        "report_command": _command(runs, out, maps),
        "versions": _versions(),
    }


def _classification(
    runs: Sequence[Run],
    metrics: Sequence[dict[str, Any]],
    summaries: Sequence[Summary],
    config: ReportConfig,
    maps: Path | None,
) -> dict[str, Any]:
    """What the page shows of runs with classes."""
    first, gallery, predictions = runs[0], make_gallery(runs, maps, config), _predictions(runs)
    return {
        "title": config.title or f"{' or '.join(first.classes)}: slide classification",
        "words": WORDS | {"mark": f"A mark at the left: {predictions['judge']} is wrong."},
        "cautions": cautions(runs, metrics, summaries),
        "data": [_data_facts(first, metrics[0]), _fold_counts(first)],
        "per_fold": [_per_fold(run, said) for run, said in zip(runs, metrics, strict=True)],
        "curves": [(run_name(run, runs), curves(run, config.resamples)) for run in runs],
        "gallery": gallery,
        "anchors": gallery.anchors,
        "localisation": localisation_tables(gallery.localisation, gallery.froc, runs, config.resamples),
        "further": further_tables([run_name(run, runs) for run in runs], metrics),
        "predictions": predictions,
    }


def _survival(
    runs: Sequence[Run],
    metrics: Sequence[dict[str, Any]],
    summaries: Sequence[Summary],
    config: ReportConfig,
    maps: Path | None,
) -> dict[str, Any]:
    """What the page shows of survival runs; there are no maps of them."""
    if maps is not None:
        runs[0].require_classes("--maps")
    first, names = runs[0], [run_name(run, runs) for run in runs]
    folds = fold_rows(first)
    return {
        "title": config.title or "Survival from slides",
        "words": SURVIVAL_WORDS,
        "cautions": survival_cautions(runs, metrics, summaries),
        "data": [
            Table("Data", ("what", "value"), data_rows(first, metrics[0])),
            Table("Cases by fold and part", *folds),
        ],
        "per_fold": [
            Table(name, *result_rows(run, said)) for name, run, said in zip(names, runs, metrics, strict=True)
        ],
        "curves": [(name, survival_curves(run)) for name, run in zip(names, runs, strict=True)],
        "gallery": Gallery(),
        "anchors": {},
        "localisation": [],
        "further": [],
        "predictions": case_table(runs, names),
    }


def _headline(summary: Summary) -> dict[str, str]:
    metric = "auroc" if "auroc" in summary.estimates else "c_index"
    area = summary.estimates[metric]
    interval = "" if area.interval is None else f"{area.interval[0]:.3f} to {area.interval[1]:.3f}"
    difference = summary.difference.get(metric)
    return {
        "name": summary.title,
        "value": format_estimate(Estimate(area.value, None)),
        "interval": interval,
        "difference": format_estimate(difference, sign=True) if difference is not None else "",
    }


def _protocol(runs: Sequence[Run], config: ReportConfig) -> list[tuple[str, str]]:
    run = runs[0]
    chosen = run.info["chosen_by"]
    methods = "; ".join(f"{other.config.title}: seed {other.config.seed}" for other in runs)
    return [
        ("Asked", _asked(runs)),
        ("Compared", methods),
        ("Folds", f"{run.info['n_folds']}, split by case; every case is tested once, by a model that never saw it"),
        ("Epoch chosen by", chosen["epoch"].replace("auroc", "AUROC").replace("c-index", "C-index")),
        ("Threshold chosen by", chosen["threshold"]),
        *([("Bins of time from", chosen["time bins"])] if "time bins" in chosen else []),
        ("Test part", chosen["test part"]),
        ("Headline", "mean over folds; each fold's model is scored on its own scale"),
        ("Intervals", f"95 % percentile bootstrap over cases, {config.resamples} resamples"),
        ("Differences", "paired: both runs on the same resamples; no correction for several comparisons"),
    ]


def _asked(runs: Sequence[Run]) -> str:
    """What the runs were to find out, in a sentence or two."""
    if runs[0].config.task.name == "survival":
        asked = "Who is at higher risk? Learned from the follow-up of cases, without outlines in their slides."
    else:
        asked = f"Is a slide {' or '.join(runs[0].classes)}? Learned from one label a slide, without outlines."
    if len(runs) == 1:
        return asked
    others = " and ".join(run_name(run, runs) for run in runs[1:])
    return f"{asked} And how does {others} compare with {run_name(runs[0], runs)}?"


def _data_facts(run: Run, metrics: dict[str, Any]) -> Table:
    said = read_test_predictions(run)
    facts = [
        ("slides tested", str(metrics["n_slides"])),
        ("cases tested", str(metrics["n_cases"])),
        *((f"slides of class {name}", str(sum(one.y_true == name for one in said))) for name in run.classes),
        ("encoder", str(run.info["encoder"] or "not recorded")),
        ("feature width", str(run.info["in_dim"])),
        ("scale of tiles (mpp)", f"{run.info['mpp']:g} µm per pixel" if run.info["mpp"] else "not recorded"),
    ]
    return Table("Data", ("what", "value"), [*facts, *_instances(run, [one.slide_id for one in said])])


def _instances(run: Run, slides: Sequence[str]) -> list[tuple[str, str]]:
    """Instances a slide, where the bags are still there."""
    import h5py

    counts = []
    for slide_id in slides:
        path = run.config.features / f"{slide_id}.h5"
        if not path.is_file():
            return []
        with h5py.File(path, "r") as file:
            features = file.get("features")
            counts.append(len(features) if isinstance(features, h5py.Dataset) else 0)
    low, middle, high = np.quantile(counts, [0, 0.5, 1])
    return [("tiles a slide", f"median {middle:.0f} (from {low:.0f} to {high:.0f})")]


def _fold_counts(run: Run) -> Table:
    said = read_test_predictions(run)
    rows = []
    for fold in run.folds:
        fact = run.fold_info(fold)
        counts = [str(sum(one.fold == fold and one.y_true == name for one in said)) for name in run.classes]
        rows.append([f"fold {fold}", str(fact["n_train"]), str(fact["n_val"]), str(fact["n_test"]), *counts])
    header = ["fold", "train", "validation", "test", *(f"test: {name}" for name in run.classes)]
    return Table("Slides by fold and part", header, rows)


def _per_fold(run: Run, metrics: dict[str, Any]) -> Table:
    rows = []
    for entry in metrics["folds"]:
        fact = run.fold_info(entry["fold"])
        threshold = number(fact["threshold"])
        rows.append(
            [f"fold {entry['fold']}", *(number(entry[name]) for name in METRICS), str(entry["best_epoch"]), threshold]
        )
    for label, key in (("mean", "fold_mean"), ("pooled", "pooled")):
        values = [metrics[key][name] for name in METRICS]
        rows.append([label, *(with_interval(value) for value in values), "", ""])
    header = ["fold", *(METRIC_NAMES[name] for name in METRICS), "best epoch", "threshold"]
    return Table(run.config.title, header, rows)


def _predictions(runs: Sequence[Run]) -> dict[str, Any]:
    """Header and rows of the table of slides; a row carries whether the last run was wrong."""
    by_run = [{said.slide_id: said for said in read_test_predictions(run)} for run in runs]
    classes = runs[0].classes
    two = len(classes) == 2
    header = ["slide", "case", "fold", "true"]
    for run in runs:
        name = run_name(run, runs)
        header += [f"{name}: predicted", f"{name}: p({classes[1]})" if two else f"{name}: p(predicted)"]
    rows = []
    for slide_id in sorted(set.intersection(*(set(said) for said in by_run))):
        last = by_run[-1][slide_id]
        cells = [slide_id, last.case_id, str(last.fold), last.y_true]
        for said in by_run:
            one = said[slide_id]
            index = 1 if two else classes.index(one.y_pred)
            cells += [one.y_pred, f"{one.probabilities[index]:.4f}"]
        rows.append({"cells": cells, "wrong": last.is_wrong})
    n_wrong = sum(row["wrong"] for row in rows)
    judge = run_name(runs[-1], runs)
    sentence = f"{len(rows)} tested slides; {judge} is wrong on {n_wrong}."
    if any(one.threshold is not None for said in by_run for one in said.values()):
        sentence += f" A slide is called {classes[1]} from the threshold of its fold on, which need not be 0.5."
    return {"header": header, "rows": rows, "n_wrong": n_wrong, "judge": judge, "sentence": sentence}


def _reproduce(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    config = shlex.quote(str(run.path / "config.yaml"))
    keys = ("identity", "baseline_identity", "data_fingerprint", "tool_version")
    return {
        "name": run_name(run, runs),
        "command": f"mhim train --config {config} --out {shlex.quote(str(run.path))}-again",
        "facts": [(key.replace("_", " "), str(run.info[key])) for key in keys if run.info.get(key) is not None],
        "yaml": to_yaml(run.config),
    }


def _command(runs: Sequence[Run], out: Path, maps: Path | None) -> str:
    words = ["mhim", "report", *(str(run.path) for run in runs), "-o", str(out)]
    return shlex.join([*words, *(["--maps", str(maps)] if maps is not None else [])])


def _versions() -> str:
    parts = [f"mhim {mhim.__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in LIBRARIES)])
