"""Cross-validation: one fold after the other (or side by side), two stages where the method asks for them."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel

import mhim
from mhim.artefacts import read_json, write_json, write_text
from mhim.checkpoint import load_model, save_model
from mhim.cohort import Cohort
from mhim.config import read_yaml, to_yaml, validate
from mhim.errors import ArtefactError, CheckpointError, ConfigError
from mhim.heap import prepare_memory
from mhim.methods import methods
from mhim.models import MILModel, models
from mhim.pool import end_with_parent
from mhim.protocols import protocol, require_folds_of
from mhim.provenance import environment
from mhim.registry import load_installed_plugins, load_plugin, loaded_plugins
from mhim.splits import Fold, Splits, read_splits
from mhim.training.data import BagStore, CohortFeatures, check_features, feature_statistics
from mhim.training.fit import Epoch, FitResult, fit, predict
from mhim.training.monitor import MiningMonitor
from mhim.training.runs import ASIDE, RunConfig, is_whole, read_predictions, require_fold_file, write_table
from mhim.training.snapshots import TeacherKeeper, write_teachers
from mhim.training.tasks import tasks


@dataclass(frozen=True)
class RunPlan:
    """A run that has been checked: data, folds, identity; nothing is trained or written yet."""

    config: RunConfig
    cohort: Cohort
    features: CohortFeatures
    splits: Splits
    identity: str
    baseline: RunPlan | None = None

    @property
    def stages(self) -> Iterator[tuple[str, RunPlan]]:
        """The runs to train in order, with the sub-folder of each."""
        if self.baseline is not None:
            yield "baseline", self.baseline
        yield "", self


def plan_run(config: RunConfig) -> RunPlan:
    """Read and check everything that a run needs.

    Raises:
        CohortError, FeatureError, ConfigError: one line that names the file and the fix.
    """
    check_recipe(config)
    task = tasks.build(config.task)
    everyone, splits = task.read_cohort(config.cohort), read_splits(config.splits)
    splits.check(everyone, config.splits)
    require_folds_of(protocol(config.protocol), splits, config.splits)
    cohort, features = check_features(store_of(config, everyone), config.allow_missing)
    if len(cohort) < len(everyone):
        splits = splits.only(cohort.case_labels())
        splits.check(cohort, config.splits)
    for fold in splits.folds:
        task.fold_facts(cohort, fold)  # raises what a fold's training part cannot give
    return plan_on(config, cohort, features, splits)


def store_of(config: RunConfig, cohort: Cohort) -> BagStore:
    """The bags of a run, read as it says."""
    return BagStore(config.features, cohort, config.train.cache_bytes, config.train.map_bags)


def plan_on(config: RunConfig, cohort: Cohort, features: CohortFeatures, splits: Splits) -> RunPlan:
    """The plan of a run on data and folds that have been checked already."""
    folds = splits.fingerprint
    baseline = None
    if methods[config.method.name].needs_baseline(config.method):
        plain = config.model_copy(update={"method": methods.parse("supervised")})
        baseline = RunPlan(plain, cohort, features, splits, plain.identity(features.data_fingerprint, folds))
    return RunPlan(config, cohort, features, splits, config.identity(features.data_fingerprint, folds), baseline)


def check_recipe(config: RunConfig) -> None:
    """Build model and method once, before any data is read, so that options that do not fit together fail at once.

    Raises:
        ConfigError: for instance a student start that the aggregator has no layers for.
    """
    outputs = tasks.build(config.task).fewest_outputs
    with torch.random.fork_rng(devices=[]):
        try:
            model, baseline = (models.build(config.model, 8, outputs) for _ in range(2))
        except ConfigError:  # it may need another width or more classes; the data will tell
            return
        methods.build(config.method, model, baseline)


def missing_folds(plan: RunPlan, out: Path) -> list[int]:
    """Folds of a run that are not complete yet in its folder.

    Raises:
        ArtefactError: the folder holds another run, or a fold of one.
    """
    folders = {fold.index: out / f"fold_{fold.index}" for fold in plan.splits.folds}
    whole = {index: folder for index, folder in folders.items() if is_whole(folder)}
    markers = {None: out / "run.json"} | {index: folder / "fold.json" for index, folder in whole.items()}
    for index, marker in markers.items():
        said = read_json(marker) if marker.is_file() else {"identity": plan.identity}
        if said.get("identity") != plan.identity or said.get("fold") != index:
            raise ArtefactError(
                f"{out}: holds a run of another configuration, cohort or split; give another --out, or --overwrite"
            )
    return [index for index in folders if index not in whole]


def clear_run(out: Path) -> None:
    """Remove a run folder, complete or not, with its baseline; and nothing that is not one."""
    for folder in (out / "baseline", out):
        if (folder / "run.json").is_file():
            shutil.rmtree(folder)


def require_baseline_recipe(path: Path, config: RunConfig) -> None:
    """Refuse a baseline of another aggregator, optimisation or seed, before any data is read.

    Raises:
        CheckpointError: not a run folder.
        ConfigError: names what differs.
    """
    if not (path / "config.yaml").is_file():
        raise CheckpointError(f"{path}: not a run folder; give the plain run of the same cohort, splits and seed")
    theirs = validate(RunConfig, read_yaml(path / "config.yaml"), str(path / "config.yaml"))
    if theirs.method.name != "supervised":
        raise ConfigError(f"{path}: holds {theirs.title}; a teacher starts from a run of --method supervised")
    for part in ("model", "train", "seed"):
        ours, other = (_comparable(getattr(each, part)) for each in (config, theirs))
        changed = [
            f"{part}.{key} {other.get(key)}, here {ours.get(key)}" for key in ours if other.get(key) != ours[key]
        ]
        if changed:
            raise ConfigError(f"{path}: the baseline was trained with {'; '.join(changed)}; leave --baseline out")


def _comparable(part: object) -> dict[str, object]:
    if not isinstance(part, BaseModel):
        return {"value": part}
    return part.model_dump(mode="json", exclude=set(ASIDE))


def require_baseline(path: Path, plan: RunPlan) -> None:
    """Refuse a baseline of another fold, seed, cohort or configuration: it may have seen the test slides.

    Raises:
        CheckpointError: not the plain baseline of exactly this plan, or not complete.
    """
    if not (path / "run.json").is_file():
        raise CheckpointError(f"{path}: not a run folder; give the plain run of the same cohort, splits and seed")
    if read_json(path / "run.json").get("identity") != plan.identity:
        raise CheckpointError(
            f"{path}: not the plain baseline of this cohort, splits, seed and optimisation; a teacher from it may have "
            f"seen the test slides. Leave --baseline out to train the right one"
        )
    if missing_folds(plan, path):
        raise CheckpointError(f"{path}: folds are missing; finish that run first")
    for fold in plan.splits.folds:
        require_fold_file(path / f"fold_{fold.index}" / "model.safetensors", fold.index, plan.identity)


def train_run(
    plan: RunPlan,
    out: Path,
    workers: int = 0,
    baseline: Path | None = None,
    on_epoch: Callable[[int, Epoch], None] = lambda fold, epoch: None,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> None:
    """Train the folds of one stage that are not complete, and write the run folder.

    Args:
        plan: one stage, checked.
        out: its folder.
        workers: folds trained side by side in processes; 0 trains in this process.
        baseline: folder of the plain baseline, for methods that start from one.
        on_epoch: called after each epoch, in this process only.
        on_fold: called after each fold.

    Raises:
        ArtefactError: the folder holds another run, or a worker process died.
        FeatureError: a bag cannot be used, or training diverged.
    """
    pending = missing_folds(plan, out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", to_yaml(plan.config))
    write_json(out / "run.json", describe(plan))
    write_json(out / "data.json", {"slides": dict(plan.features.slides), "folds": plan.splits.fingerprint})
    if workers > 1 and len(pending) > 1:
        _train_side_by_side(plan, pending, out, workers, baseline, on_fold)
    else:
        for fold in pending:
            train_fold(plan, fold, out, baseline, on_epoch)
            on_fold(fold)
    tables = [read_predictions(out / f"fold_{fold.index}" / "predictions.csv") for fold in plan.splits.folds]
    together = pd.concat([table.loc[table["part"] == "test"] for table in tables], ignore_index=True)
    write_table(out / "predictions.csv", together.drop(columns="part"))


def _train_side_by_side(
    plan: RunPlan, pending: list[int], out: Path, workers: int, baseline: Path | None, on_fold: Callable[[int], None]
) -> None:
    pool = ProcessPoolExecutor(min(workers, len(pending)), get_context("spawn"), _prepare_worker, (loaded_plugins(),))
    others = set(active_children())
    try:
        jobs = {pool.submit(train_fold, plan, fold, out, baseline): fold for fold in pending}
        for job in as_completed(jobs):
            job.result()
            on_fold(jobs[job])
    except BrokenProcessPool:
        raise ArtefactError(
            f"{out}: a training process died (out of memory?); finished folds are kept, run again with fewer --workers"
        ) from None
    except KeyboardInterrupt:
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker(plugins: tuple[Path, ...]) -> None:
    """Ctrl-C ends a worker without a traceback; what it had not finished is trained again."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    load_installed_plugins()
    for path in plugins:
        load_plugin(path)


def describe(plan: RunPlan) -> dict[str, object]:
    """The content of ``run.json``; no paths, so that equal runs have equal files."""
    task = tasks.build(plan.config.task)
    return {
        "tool": "mhim",
        "tool_version": mhim.__version__,
        "identity": plan.identity,
        "title": plan.config.title,
        "task": plan.config.task.name,
        "classes": list(task.outputs(plan.cohort)),
        "in_dim": plan.features.in_dim,
        "encoder": plan.features.encoder,
        "mpp": plan.features.mpp,
        "n_folds": len(plan.splits.folds),
        "n_slides": len(plan.cohort),
        "n_cases": len(plan.cohort.case_labels()),
        "data_fingerprint": plan.features.data_fingerprint,
        "baseline_identity": None if plan.baseline is None else plan.baseline.identity,
        "protocol": plan.config.protocol,
        "chosen_by": protocol(plan.config.protocol).chosen_by(task.chosen_by(plan.config.train.select_by)),
    }


def train_fold(
    plan: RunPlan,
    fold_index: int,
    out: Path,
    baseline: Path | None,
    on_epoch: Callable[[int, Epoch], None] = lambda fold, epoch: None,
) -> None:
    """Train one fold and write its folder; ``fold.json`` comes last and says that it is complete."""
    prepare_memory()
    with _threads(plan.config.train.threads):
        _train_fold(plan, fold_index, out, baseline, on_epoch)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch works with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_fold(
    plan: RunPlan, fold_index: int, out: Path, baseline: Path | None, on_epoch: Callable[[int, Epoch], None]
) -> None:
    config, folder = plan.config, out / f"fold_{fold_index}"
    fold = plan.splits.folds[fold_index]
    task, store = tasks.build(config.task), store_of(config, plan.cohort)
    train, val = (task.bags(store, fold, part) for part in ("train", "val"))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + fold_index)
    start = _start(plan, fold_index, baseline)
    model = build_model(plan, generator)
    if config.train.standardise:
        model.standardise(*feature_statistics(train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        method = methods.build(config.method, model, start)
    monitor = MiningMonitor(task.truth(store)) if config.train.watch else None
    keeper = TeacherKeeper(config.train.epochs, config.train.keep_teachers)
    result = fit(
        method, train, val, config.train, generator, partial(on_epoch, fold_index), monitor, task, keeper=keeper
    )
    keeper.at_end(len(result.history), method)
    write_teachers(folder, keeper, method, task.outputs(plan.cohort), file_facts(plan, fold_index))
    model.load_state_dict(result.state)
    write_fold(plan, fold, folder, model, result, store)


def _start(plan: RunPlan, fold: int, baseline: Path | None) -> MILModel | None:
    """The plain aggregator of the same fold, checked to be exactly that; None for methods without one."""
    if baseline is None or plan.baseline is None:
        return None
    file = baseline / f"fold_{fold}" / "model.safetensors"
    require_fold_file(file, fold, plan.baseline.identity)
    return load_model(file)


def file_facts(plan: RunPlan, fold: int) -> dict[str, str]:
    """What every model file of a fold says of where it comes from."""
    return {"fold": str(fold), "identity": plan.identity, "encoder": plan.features.encoder or ""}


def build_model(plan: RunPlan, generator: torch.Generator) -> MILModel:
    """A freshly initialised aggregator; the draw comes from ``generator``, the global one is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
        return models.build(
            plan.config.model, plan.features.in_dim, len(tasks.build(plan.config.task).outputs(plan.cohort))
        )


def write_fold(plan: RunPlan, fold: Fold, folder: Path, model: MILModel, result: FitResult, store: BagStore) -> None:
    """Score validation and test part with the best epoch's weights, and write the fold's files."""
    task, cohort = tasks.build(plan.config.task), plan.cohort
    outputs = task.outputs(cohort)
    parts = {part: task.bags(store, fold, part) for part in ("val", "test")}
    said = {part: predict(model, bags, task)[0] for part, bags in parts.items()}
    threshold = task.threshold(said[protocol(plan.config.protocol).threshold_by])
    tables = [
        pd.DataFrame({"part": part, "fold": fold.index} | task.table(bags, said[part], outputs, threshold))
        for part, bags in parts.items()
    ]
    extra = file_facts(plan, fold.index)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model.safetensors", model, outputs, extra | task.model_facts(cohort, fold))
    write_table(folder / "history.csv", pd.DataFrame([epoch.row() for epoch in result.history]))
    write_table(folder / "predictions.csv", pd.concat(tables, ignore_index=True))
    best = result.history[result.best_epoch]
    write_json(
        folder / "fold.json",
        {
            "fold": fold.index,
            "identity": plan.identity,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            f"val_{task.metric}": best.val_score,
            "val_loss": best.val_loss,
            "threshold": threshold,
            f"test_{task.metric}": task.score(said["test"]),
            "n_train": len(cohort.of_cases(fold.train)),
            "n_val": parts["val"].n_slides,
            "n_test": parts["test"].n_slides,
            "environment": environment(
                next(model.parameters()).device.type, type(model), methods[plan.config.method.name]
            ),
        }
        | task.fold_facts(cohort, fold),
    )
