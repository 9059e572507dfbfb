"""A run again, from its own folder: what it was made with then and now, and whether it comes out the same.

Same seed, same data, same code, same libraries, same machine: weights, predictions and metrics are equal bit for bit.
Where something differs, the report says what, and whether the numbers moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mhim.artefacts import read_json
from mhim.errors import ArtefactError, ConfigError
from mhim.methods import methods
from mhim.models import models
from mhim.provenance import environment
from mhim.training.crossval import RunPlan, plan_run, train_run
from mhim.training.fit import Epoch, choose_device
from mhim.training.runs import Run, open_run, read_predictions

SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was.

    Attributes:
        part: "data", "configuration", "environment", "weights", "predictions" or "history".
        sentence: what, in words.
    """

    part: str
    sentence: str


def plan_again(path: Path, changes: Mapping[str, Path]) -> tuple[Run, RunPlan]:
    """The run in a folder, and a plan of the same from its configuration.

    Args:
        path: the run folder, complete.
        changes: places of cohort, features or splits, for data that have moved.

    Raises:
        ArtefactError, ConfigError, CohortError, FeatureError: one line.
    """
    run = open_run(path)
    config = run.config.model_copy(update={key: value.resolve() for key, value in changes.items()})
    for name in ("cohort", "features", "splits"):
        place = getattr(config, name)
        if not place.exists():
            raise ConfigError(f"{path}: its {name}, {place}, is not there; say where it is now with --{name}")
    return run, plan_run(config)


def what_changed(run: Run, plan: RunPlan) -> list[Difference]:
    """Data, folds, configuration and environment then and now; before anything is trained."""
    found = list(_data(run, plan))
    if plan.identity != run.info["identity"] and not found:
        text = "another than the run was made with: config.yaml was edited, or this version has other options"
        found.append(Difference("configuration", text))
    device = choose_device(plan.config.train.device).type
    now = environment(device, models[plan.config.model.name], methods[plan.config.method.name])
    if plan.config.train.threads is not None:
        now |= {"threads": plan.config.train.threads}
    found += _environment(run, now)
    return found


def _data(run: Run, plan: RunPlan) -> Iterator[Difference]:
    """Slides that are gone, new, relabelled or encoded otherwise, and other folds."""
    file = run.path / "data.json"
    if not file.is_file():
        if plan.features.data_fingerprint != run.info["data_fingerprint"]:
            yield Difference("data", "cohort or features changed; the run is too old to say which slides")
        return
    then = read_json(file)
    before = {name: tuple(facts) for name, facts in then["slides"].items()}
    now = dict(plan.features.slides)
    for names, text in (
        (sorted(before.keys() - now.keys()), "are gone"),
        (sorted(now.keys() - before.keys()), "are new"),
    ):
        if names:
            yield Difference("data", f"{len(names)} slides {text} ({_some(names)})")
    both = sorted(before.keys() & now.keys())
    for index, what in enumerate(("another case", "another label", "other features")):
        names = [name for name in both if before[name][index] != now[name][index]]
        if names:
            yield Difference("data", f"{len(names)} slides have {what} ({_some(names)})")
    if then["folds"] != plan.splits.fingerprint:
        yield Difference("data", "the folds are others")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _environment(run: Run, now: Mapping[str, Any]) -> list[Difference]:
    """What differs between the folds' recorded environments and this one; each thing once."""
    sentences: dict[str, None] = {}
    for fold in run.folds:
        then = run.fold_info(fold).get("environment")
        if then is None:
            sentences["the run does not say what it was made with (it is older than that record)"] = None
            continue
        flat_then, flat_now = _flat(then), _flat(now)
        for key in sorted(flat_then.keys() | flat_now.keys()):
            if flat_then.get(key) != flat_now.get(key):
                sentences[f"{key} was {flat_then.get(key)}, is {flat_now.get(key)}"] = None
    return [Difference("environment", sentence) for sentence in sentences]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one: ``libraries.torch``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{key}.{name}" if name else key: part for name, part in inner.items()}
    return flat


def train_again(
    run: Run,
    plan: RunPlan,
    out: Path,
    workers: int = 0,
    on_epoch: Callable[[int, Epoch], None] = lambda fold, epoch: None,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> Run:
    """Train every stage of the plan into another folder; goes on where it stopped.

    Raises:
        ArtefactError: ``out`` is the run itself, or holds another run.
    """
    if out.resolve() == run.path.resolve():
        raise ArtefactError(f"{out}: is the run itself; give another --out")
    for stage, part in plan.stages:
        start = None if part.baseline is None else out / "baseline"
        train_run(part, out / stage, workers, start, on_epoch, on_fold)
    return open_run(out)


def compare_runs(first: Run, second: Run) -> list[Difference]:
    """Weights, predictions and histories of two runs, fold by fold; an empty list says equal bit for bit."""
    found: list[Difference] = []
    if first.info["n_folds"] != second.info["n_folds"]:
        return [Difference("predictions", f"{first.info['n_folds']} folds then, {second.info['n_folds']} now")]
    for fold in first.folds:
        one, other = first.fold_path(fold), second.fold_path(fold)
        found += _weights(fold, one, other)
        found += _predictions(fold, one, other)
        if (one / "history.csv").read_bytes() != (other / "history.csv").read_bytes():
            found.append(Difference("history", f"fold {fold}: the epochs went otherwise"))
    return found


def _weights(fold: int, one: Path, other: Path) -> Iterator[Difference]:
    """The largest difference of any weight, where there is one."""
    if (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes():
        return
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
        yield Difference("weights", f"fold {fold}: other layers or shapes")
        return
    gap = max(float(np.abs(first[name].astype(np.float64) - second[name]).max(initial=0)) for name in first)
    text = f"weights differ by up to {gap:.3g}" if gap else "equal weights, but another description in the file"
    yield Difference("weights", f"fold {fold}: {text}")


def _predictions(fold: int, one: Path, other: Path) -> Iterator[Difference]:
    """The largest difference of any probability, where the tables differ."""
    first, second = (read_predictions(folder / "predictions.csv") for folder in (one, other))
    if (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes():
        return
    same_rows = len(first) == len(second) and list(first["slide_id"]) == list(second["slide_id"])
    scores = [column for column in first.columns if column.startswith("prob_")]
    if not same_rows or list(first.columns) != list(second.columns):
        yield Difference("predictions", f"fold {fold}: other slides or classes")
        return
    gap = float(np.abs(first[scores].to_numpy() - second[scores].to_numpy()).max(initial=0)) if scores else 0.0
    said = [list(table["y_pred"]) if "y_pred" in table else [] for table in (first, second)]
    changed = sum(one != other for one, other in zip(*said, strict=True))
    yield Difference("predictions", f"fold {fold}: probabilities differ by up to {gap:.3g}, {changed} other decisions")
