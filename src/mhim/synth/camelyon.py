"""A CAMELYON16-like simulation: bags of the listed slides, made in worker processes, resumed, tables written last.

It is a simulation: real outlines, slide list and patch features of other tissue, put together by chance. Nothing
measured on it is a result on CAMELYON16.
"""

from __future__ import annotations

import contextlib
import csv
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import h5py
import numpy as np
from numpy.typing import NDArray

from mhim.artefacts import atomic_path, quick_digest, read_json, write_json, write_text
from mhim.bag import Bag, check_features, create_file, read_attributes, to_storage, write_facts
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import fingerprint
from mhim.errors import ArtefactError, ConfigError, FeatureError
from mhim.pool import end_with_parent
from mhim.synth.bags import NORMAL, SUBTLE, lay_out, make_features, with_blob
from mhim.synth.camelyon_config import CamelyonConfig
from mhim.synth.feature_pool import FeaturePool, read_pool
from mhim.synth.outlines import INDEX_TABLE, LIST_TABLE, SLIDE_TABLE, VERTICES, SlideMeta, read_meta

SIMULATION = "camelyon16-like"
GENERATOR = 1
"""Raised whenever the same configuration would give other bags."""
MANIFEST = "simulation.json"
COHORT_TABLE = "cohort.csv"
TRUTH_TABLE = "truth.csv"
COHORT_COLUMNS = ("slide_id", "case_id", "label", "site", "fold", "part", "simulation")
TRUTH_COLUMNS = ("slide_id", "tiles", "tumour_tiles", "subtle_tiles", "tumour_fraction", "known_fraction", "groups")


@dataclass(frozen=True)
class BagPlan:
    """One slide to be made.

    Attributes:
        meta: what is known of it; every tumour slide has an outline.
        fold: which part of the pool's groups it draws from, and its test fold.
        groups: those it draws from.
    """

    meta: SlideMeta
    fold: int
    groups: tuple[int, ...]

    @property
    def slide_id(self) -> str:
        """The slide's name."""
        return self.meta.slide_id


def bag_path(out: Path, slide_id: str) -> Path:
    """Where the bag of a slide is in a cohort folder."""
    return out / "features" / f"{slide_id}.h5"


def simulation_identity(config: CamelyonConfig) -> str:
    """Fingerprint of everything that decides the bags: settings, and content of the inputs."""
    inputs = [config.pool, *(config.meta / name for name in (LIST_TABLE, SLIDE_TABLE, INDEX_TABLE, VERTICES))]
    for path in inputs:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; give --meta and --pool, see docs/camelyon16_simulation.md")
    settings = config.model_dump(mode="json", exclude={"meta", "pool"})
    return fingerprint({"generator": GENERATOR, "config": settings, "inputs": [quick_digest(path) for path in inputs]})


def plan_simulation(config: CamelyonConfig) -> list[BagPlan]:
    """The slides, each with its fold and the groups it draws from; no group serves two folds.

    Raises:
        CohortError, FeatureError: the inputs are not what they should be.
        ConfigError: fewer groups with tumour than folds.
    """
    slides, pool = read_meta(config.meta), _pool_of(config.pool, config.components)
    rng = np.random.default_rng([config.seed, GENERATOR])
    parts = _group_parts(pool, config.folds, rng)
    tumorous = set(pool.groups_with(1).tolist())
    usual = median([slide.tumour_fraction for slide in slides if slide.label and slide.tumour_fraction] or [0.01])
    fold = _slide_folds(slides, config.folds, rng)
    plans = []
    for slide, index in zip(slides, fold, strict=True):
        if slide.label and not slide.positive:
            slide = with_blob(slide, slide.tumour_fraction or usual, config)
        plans.append(BagPlan(slide, index, _slide_groups(parts[index], tumorous, config, rng)))
    return plans


def _group_parts(pool: FeaturePool, folds: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """The groups in as many parts as folds, those with tumour spread evenly."""
    tumorous = pool.groups_with(1)
    if len(tumorous) < folds:
        raise ConfigError(f"folds {folds}: the pool has only {len(tumorous)} groups with tumour; use fewer folds")
    others = np.setdiff1d(np.unique(pool.group), tumorous)
    order = np.concatenate([rng.permutation(tumorous), rng.permutation(others)])
    return [order[fold::folds] for fold in range(folds)]


def _slide_folds(slides: Sequence[SlideMeta], folds: int, rng: np.random.Generator) -> list[int]:
    """A fold for each slide, stratified by label and hospital."""
    keys = [(slide.label, slide.site) for slide in slides]
    fold = np.zeros(len(slides), dtype=int)
    start = 0
    for key in sorted(set(keys)):
        members = rng.permutation([index for index, other in enumerate(keys) if other == key])
        fold[members] = (start + np.arange(len(members))) % folds
        start += len(members)
    return fold.tolist()


def _slide_groups(
    part: NDArray[np.int64], tumorous: set[int], config: CamelyonConfig, rng: np.random.Generator
) -> tuple[int, ...]:
    """Random groups of a part, one with tumour among them."""
    first = rng.choice([group for group in part.tolist() if group in tumorous])
    others = rng.permutation(part[part != first])[: config.groups_per_slide - 1]
    return tuple(sorted([int(first), *others.tolist()]))


@cache
def _pool_of(path: Path, components: int) -> FeaturePool:
    return read_pool(path, components)


def make_simulation(out: Path, config: CamelyonConfig, workers: int = 2, *, overwrite: bool = False) -> BatchResult:
    """Make the bags; finished ones of the same configuration and inputs are kept.

    Writes ``features/ID.h5``, ``simulation.json`` and, once every bag is whole, ``truth.csv`` and ``cohort.csv``.
    What is written depends on the configuration and the inputs only, not on ``workers``.

    Args:
        out: folder to write.
        config: what to make.
        workers: processes; 0 works in this one.
        overwrite: replace a cohort of another configuration instead of refusing.

    Raises:
        ArtefactError: the folder holds a cohort of other origin.
        MhimError: the inputs are not what they should be.
    """
    plans, todo = missing_bags(out, config, overwrite=overwrite)
    identity = simulation_identity(config)
    if not _is_made_by(out, identity):
        _clear(out)
        manifest = {"simulation": SIMULATION, "made_by": identity, "generator": GENERATOR}
        write_json(out / MANIFEST, manifest | {"config": config.model_dump(mode="json", exclude={"meta", "pool"})})
    with _makers(out, config, identity, todo, workers) as make:
        result = run_batch(plans, make, name=lambda plan: plan.slide_id, label="synth")
    if not result.failed:
        _write_tables(out, plans)
    return result


def missing_bags(out: Path, config: CamelyonConfig, *, overwrite: bool = False) -> tuple[list[BagPlan], list[BagPlan]]:
    """All slides, and those that :func:`make_simulation` would make, given what is already in the folder.

    Raises:
        ArtefactError: the folder holds a cohort of other origin and ``overwrite`` is not set.
    """
    identity = simulation_identity(config)
    plans = plan_simulation(config)
    if _is_made_by(out, identity):
        return plans, [plan for plan in plans if not _is_whole(bag_path(out, plan.slide_id), identity)]
    for name in (MANIFEST, COHORT_TABLE):
        if (out / name).exists() and not overwrite:
            raise ArtefactError(f"{out / name}: a cohort of other origin; give another folder with -o, or --overwrite")
    return plans, plans


def _is_made_by(out: Path, identity: str) -> bool:
    return (out / MANIFEST).is_file() and read_json(out / MANIFEST).get("made_by") == identity


def _is_whole(path: Path, identity: str) -> bool:
    try:
        return read_attributes(path).get("config_fingerprint") == identity
    except FeatureError:
        return False


def _clear(out: Path) -> None:
    """Remove the tables and every simulated bag; files of other origin stay."""
    for name in (COHORT_TABLE, TRUTH_TABLE, MANIFEST):
        (out / name).unlink(missing_ok=True)
    for path in (out / "features").glob("*.h5"):
        with contextlib.suppress(FeatureError):
            if read_attributes(path).get("simulation") == SIMULATION:
                path.unlink()


@contextlib.contextmanager
def _makers(
    out: Path, config: CamelyonConfig, identity: str, todo: Sequence[BagPlan], workers: int
) -> Iterator[Callable[[BagPlan], Outcome]]:
    """A function that makes a bag, or waits for the worker that does; workers start on all at once."""
    names = {plan.slide_id for plan in todo}
    if not workers or not todo:
        yield lambda plan: make_bag(out, config, identity, plan) if plan.slide_id in names else Outcome.SKIPPED
        return
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        waiting = {plan.slide_id: pool.submit(make_bag, out, config, identity, plan) for plan in todo}
        yield lambda plan: waiting[plan.slide_id].result() if plan.slide_id in waiting else Outcome.SKIPPED
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_bag(out: Path, config: CamelyonConfig, identity: str, plan: BagPlan) -> Outcome:
    """Make and write one bag; besides the usual arrays it holds ``instance_kind`` (N,) int8."""
    pool = _pool_of(config.pool, config.components)
    layout = lay_out(plan.meta, config)
    features = make_features(plan.meta, layout, pool, np.array(plan.groups), config)
    path = bag_path(out, plan.slide_id)
    check_features(features, path)
    bag = Bag(
        plan.slide_id,
        to_storage(features, config.precision, path),
        layout.xy_px0,
        _attributes(config, identity, plan, layout.xy_px0),
        layout.coverage.astype(np.float32),
    )
    with atomic_path(path) as temporary, create_file(temporary) as file:
        file.create_dataset("features", data=bag.features)
        write_facts(file, bag)
        file.create_dataset("instance_kind", data=layout.kind)
        file.attrs["complete"] = True
    return Outcome.DONE


def _attributes(
    config: CamelyonConfig, identity: str, plan: BagPlan, xy_px0: NDArray[np.int64]
) -> dict[str, str | int | float]:
    width, height = (int(side) for side in xy_px0.max(axis=0) + config.pitch_px0)
    return {
        "simulation": SIMULATION,
        "encoder": f"simulation-{SIMULATION}",
        "encoder_revision": identity,
        "mpp": 0.5,
        "slide_mpp": 0.25,
        "tile_size_px": config.pitch_px0 / 2,
        "tile_size_level0": config.pitch_px0,
        "overlap": 0,
        "level0_width": width,
        "level0_height": height,
        "fold": plan.fold,
        "config_fingerprint": identity,
        "tool": "mhim synth",
        "tool_version": version("mhim"),
    }


def _write_tables(out: Path, plans: Sequence[BagPlan]) -> None:
    """Write ``truth.csv`` and, last of all, ``cohort.csv``."""
    truth, cohort = [], []
    for plan in plans:
        with h5py.File(bag_path(out, plan.slide_id), "r") as file:
            kind = np.asarray(file["instance_kind"])
        tumour, known = int((kind != NORMAL).sum()), plan.meta.tumour_fraction
        share = f"{tumour / len(kind):.6f}"
        groups = " ".join(map(str, plan.groups))
        subtle = int((kind == SUBTLE).sum())
        truth.append([plan.slide_id, len(kind), tumour, subtle, share, "" if known is None else known, groups])
        meta = plan.meta
        cohort.append([plan.slide_id, plan.slide_id, meta.label, meta.site, plan.fold, meta.part, SIMULATION])
    write_text(out / TRUTH_TABLE, _csv(TRUTH_COLUMNS, truth))
    write_text(out / COHORT_TABLE, _csv(COHORT_COLUMNS, cohort))


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
