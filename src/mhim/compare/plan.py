"""What a comparison trains: entries, folds by seed, and which run starts from which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mhim.cohort import Cohort, read_cohort
from mhim.config import merge, validate
from mhim.entries import Entry
from mhim.errors import ArtefactError, ConfigError, MhimError
from mhim.presets import preset_names, preset_values
from mhim.protocols import Protocol as Selection
from mhim.protocols import published_splits, require_folds_of, require_one_protocol
from mhim.splits import SplitConfig, Splits, make_splits, read_splits, write_splits
from mhim.training.crossval import RunPlan, check_recipe, missing_folds, plan_on, store_of, train_run
from mhim.training.data import CohortFeatures, check_features
from mhim.training.fit import Epoch
from mhim.training.runs import RunConfig

Like = Literal["camelyon16", "tcga"]


@dataclass(frozen=True)
class Protocol:
    """How folds are made, and what all entries share.

    Attributes:
        seeds: one repetition each: its folds (unless given), initialisation, bag order, masks.
        split: how folds are drawn; each repetition draws with its own seed.
        splits: a splits table for all repetitions instead, or None.
        like: whose published method settings MHIM takes.
        values: configuration keys that the user gave, for every entry.
        overrides: configuration keys for one entry, or for all entries of one aggregator, by its name.
    """

    seeds: tuple[int, ...]
    split: SplitConfig
    splits: Path | None
    like: Like
    values: Mapping[str, Any]
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def configuration(self, entry: Entry, seed: int, splits: Path) -> RunConfig:
        """The run of an entry and a seed.

        Raises:
            ConfigError: options that do not fit this aggregator or method.
        """
        own = {"splits": str(splits), "seed": seed}
        base = {"model": self._model(entry.model), "method": "supervised", "train": {"threads": 1}}
        if entry.method != "supervised":
            base["method"] = self._method(entry)
        values = merge(self.values, self.overrides.get(entry.model, {}), self.overrides.get(entry.name, {}))
        if entry.method == "supervised":
            values.pop("method", None)
        named = {"model": {"name": entry.model}, "method": {"name": entry.method}}
        return validate(RunConfig, merge(base, values, named, own), f"compare {entry.name}")

    def _model(self, model: str) -> Any:
        """The aggregator as in the published configuration, where there is one; plain and MHIM share it."""
        published = preset_values([self._preset("iccv2023", model, f"-{self.like}")])["model"]
        return published if published["name"] == model else model

    def _method(self, entry: Entry) -> Any:
        if entry.method == "mhim-v2":
            return preset_values([self._preset("ijcv2025", entry.model, "")])["method"]
        return preset_values([self._preset("iccv2023", entry.model, f"-{self.like}")])["method"]

    @staticmethod
    def _preset(paper: str, model: str, ending: str) -> str:
        name = f"{paper}/{model}{ending}"
        return name if name in preset_names() else f"{paper}/abmil{ending}"


@dataclass(frozen=True)
class Planned:
    """One run of the comparison, checked.

    Attributes:
        entry: whose run it is.
        seed: which repetition.
        plan: what to train.
        folder: where it goes.
        baseline: folder of the plain run that it starts from, or None.
        shown: whether it is a row; a baseline that was not asked for is not.
    """

    entry: Entry
    seed: int
    plan: RunPlan
    folder: Path
    baseline: Path | None
    shown: bool


@dataclass(frozen=True)
class Comparison:
    """Every run of a comparison, each baseline before what starts from it."""

    cohort: Cohort
    features: CohortFeatures
    folds: Mapping[int, Splits]
    protocol: Protocol
    selection: Selection
    entries: tuple[Entry, ...]
    runs: tuple[Planned, ...]

    def of(self, entry: Entry) -> list[Planned]:
        """The runs of an entry, one a seed."""
        return [run for run in self.runs if run.entry == entry]

    def todo(self, overwrite: bool = False) -> dict[Path, int]:
        """Folder -> folds to train.

        Raises:
            ArtefactError: a folder holds another run.
        """
        return {
            run.folder: len(run.plan.splits.folds) if overwrite else len(missing_folds(run.plan, run.folder))
            for run in self.runs
        }


def plan_comparison(names: Sequence[str], protocol: Protocol, allow_missing: bool, out: Path) -> Comparison:
    """Check configurations, then data, then folds; nothing is trained or written.

    Raises:
        ConfigError, CohortError, FeatureError, ArtefactError: one line.
    """
    entries = tuple(Entry.parse(name) for name in dict.fromkeys(names))
    everyone = _with_baselines(entries)
    for name in protocol.overrides.keys() - {part for entry in everyone for part in (entry.name, entry.model)}:
        raise ConfigError(f"--set {name}: is not compared (entries: {', '.join(entry.name for entry in everyone)})")
    files = {seed: protocol.splits or out / "splits" / f"seed_{seed}.csv" for seed in protocol.seeds}
    configs = {
        (entry, seed): protocol.configuration(entry, seed, files[seed]) for entry, seed in _product(everyone, protocol)
    }
    for config in configs.values():
        check_recipe(config)
    selection = require_one_protocol(
        (f"compare {entry.name}", config.protocol) for (entry, _), config in configs.items()
    )
    first = next(iter(configs.values()))
    cohort, features = check_features(store_of(first, read_cohort(first.cohort)), allow_missing)
    folds = {seed: _folds(cohort, protocol, selection, seed, file) for seed, file in files.items()}
    runs = []
    for (entry, seed), config in configs.items():
        plan = plan_on(config, cohort, features, folds[seed])
        baseline = None if plan.baseline is None else out / "runs" / entry.model / f"seed_{seed}"
        folder = out / "runs" / entry.name / f"seed_{seed}"
        runs.append(Planned(entry, seed, plan, folder, baseline, entry in entries))
    return Comparison(cohort, features, folds, protocol, selection, entries, tuple(runs))


def _with_baselines(entries: Sequence[Entry]) -> list[Entry]:
    """Plain entries first, with those that others start from."""
    plain = [Entry(e.model, e.model, "supervised") for e in entries if e.method != "supervised"]
    together = dict.fromkeys([*entries, *plain])
    return sorted(together, key=lambda entry: entry.method != "supervised")


def _product(entries: Sequence[Entry], protocol: Protocol) -> Iterator[tuple[Entry, int]]:
    return ((entry, seed) for seed in protocol.seeds for entry in entries)


def _folds(cohort: Cohort, protocol: Protocol, selection: Selection, seed: int, file: Path) -> Splits:
    """The folds of one repetition: given, drawn, or drawn as published; refused where another protocol made them."""
    if protocol.splits is not None:
        splits = read_splits(protocol.splits).only(cohort.case_labels())
        splits.check(cohort, protocol.splits)
        require_folds_of(selection, splits, protocol.splits)
        return splits
    if selection.is_honest:
        splits = make_splits(cohort, protocol.split.model_copy(update={"seed": seed}))
    elif protocol.split.use_fold_column:
        raise ConfigError(f"compare: protocol {selection.name} draws its own folds; leave --use-fold-column out")
    else:
        splits = published_splits(cohort, selection, seed, selection.folds or protocol.split.folds)
    if file.is_file() and read_splits(file) != splits:
        raise ArtefactError(
            f"{file}: holds other folds than --folds, --seeds and the cohort ask for; give another --out"
        )
    return splits


def train_comparison(
    comparison: Comparison,
    workers: int,
    on_run: Callable[[Planned], None] = lambda run: None,
    on_epoch: Callable[[Planned, int, Epoch], None] = lambda run, fold, epoch: None,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> dict[str, str]:
    """Train what is not complete; a run that fails does not stop the others.

    Returns:
        Name of each run that failed, with its one-line reason.
    """
    for seed, splits in comparison.folds.items():
        file = next(run.plan.config.splits for run in comparison.runs if run.seed == seed)
        if not file.is_file():
            write_splits(file, splits)
    failed: dict[str, str] = {}
    broken: set[Path] = set()
    for run in comparison.runs:
        on_run(run)
        name = f"{run.entry.name} seed {run.seed}"
        if run.baseline in broken:
            broken.add(run.folder)
            failed[name] = "its baseline failed"
            continue
        try:
            train_run(
                run.plan,
                run.folder,
                workers,
                run.baseline,
                lambda fold, epoch, r=run: on_epoch(r, fold, epoch),
                on_fold,
            )
        except MhimError as error:
            broken.add(run.folder)
            failed[name] = str(error)
    return failed
