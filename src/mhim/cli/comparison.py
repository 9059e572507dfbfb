"""Verb that trains many models under one protocol: compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mhim.batch import BatchResult, print_result, progress_bar
from mhim.cli.shared import (
    ConfigOption,
    DryRun,
    OutputDir,
    Overwrite,
    Plugin,
    SetOption,
    examples,
    load_plugins,
    print_table,
    say,
)

if TYPE_CHECKING:
    from mhim.compare.cost import Cost
    from mhim.compare.plan import Comparison, Planned, Protocol
    from mhim.training.fit import Epoch

DEFAULT_MODELS = "mean,max,abmil,clam-mb,dtfd,transmil,mhim-abmil,mhim-transmil"


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim compare --cohort cohort.csv --features features -o compare",
            "mhim compare ... --models abmil,clam-mb,dtfd,transmil,mhim-abmil,mhim-transmil --folds 5 --seeds 0,1,2",
            "mhim compare ... --splits splits.csv --reference oral -o compare",
            "mhim compare ... --set protocol=iccv2023-camelyon16 --seeds 2021,2022,2023 -o published",
            "mhim compare ... --set train.epochs=50 --set transmil:model.landmarks=64 -o compare",
        )
    )(compare)


def compare(
    out: OutputDir,
    cohort: Annotated[Path | None, typer.Option(help="Cohort table: slide_id, case_id, label.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files.")] = None,
    models: Annotated[
        str,
        typer.Option(help="Aggregators, plain or behind mhim- or mhim-v2-; the others are compared with the first."),
    ] = DEFAULT_MODELS,
    folds: Annotated[int, typer.Option(min=2, help="Folds of each repetition.")] = 5,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas: one repetition each, with its own folds.")
    ] = "0",
    splits: Annotated[Path | None, typer.Option(help="Splits table for all repetitions, instead of --folds.")] = None,
    use_fold_column: Annotated[bool, typer.Option(help="Take test folds from the cohort's column 'fold'.")] = False,
    reference: Annotated[str | None, typer.Option(help="oral: add the published columns.")] = None,
    like: Annotated[str, typer.Option(help="Published settings of MHIM: camelyon16 or tcga.")] = "camelyon16",
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of the schedule. Default 100.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, mps.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    workers: Annotated[int, typer.Option("--workers", "-j", min=0, help="Folds trained side by side.")] = 0,
    allow_missing: Annotated[bool, typer.Option(help="Go on without slides that have no bag.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train models under one protocol on shared folds, and write the main table of the talk for this cohort.

    An MHIM run starts from the plain run of its aggregator, fold and seed. Run again, it goes on where it stopped.
    Writes OUT/table.csv, table.md, differences.csv, roc.png, forest.png and a run folder per entry and seed.
    """
    from mhim.compare.plan import plan_comparison, train_comparison
    from mhim.errors import ConfigError
    from mhim.training.crossval import clear_run

    load_plugins(plugin)
    if reference not in (None, "oral"):
        raise ConfigError(f"--reference {reference}: expected oral")
    data = {"cohort": cohort, "features": features, "epochs": epochs, "device": device, "allow_missing": allow_missing}
    own, common = _by_entry(set_ or [])
    values = _values(data, config, common)
    split = {"folds": folds, "use_fold_column": use_fold_column}
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise ConfigError("--models names no aggregator")
    comparison = plan_comparison(names, _protocol(seeds, split, splits, like, values, own), allow_missing, out)
    todo = comparison.todo(overwrite)
    say(f"{len(comparison.runs)} runs, {sum(todo.values())} of {_total(comparison)} folds to train")
    if dry_run:
        return
    if overwrite:
        for run in comparison.runs:
            clear_run(run.folder)
    with progress_bar() as progress:
        task = progress.add_task("folds", total=sum(todo.values()))

        def name_it(run: Planned) -> None:
            progress.update(task, description=f"{run.entry.name} seed {run.seed}")

        def show(run: Planned, fold: int, epoch: Epoch) -> None:
            progress.update(task, description=f"{run.entry.name} seed {run.seed} (fold {fold} epoch {epoch.epoch})")

        failed = train_comparison(comparison, workers, name_it, show, lambda fold: progress.advance(task))
    _report(comparison, failed, out, resamples, reference)


def _by_entry(assignments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """``--set transmil:model.landmarks=64`` by its entry, and the assignments that are for all."""
    from mhim.config import parse_overrides

    named: dict[str, list[str]] = {}
    common: list[str] = []
    for text in assignments:
        entry, colon, rest = text.partition("=")[0].partition(":")
        if colon:
            named.setdefault(entry.strip(), []).append(rest + text[text.index("=") :] if "=" in text else text)
        else:
            common.append(text)
    return {name: parse_overrides(texts) for name, texts in named.items()}, common


def _total(comparison: Comparison) -> int:
    return sum(len(run.plan.splits.folds) for run in comparison.runs)


def _report(comparison: Comparison, failed: dict[str, str], out: Path, resamples: int, reference: str | None) -> None:
    """Measure costs, write tables and plots of the entries whose runs are whole."""
    from mhim.compare.plots import write_plots
    from mhim.compare.table import measure, write_tables

    whole = [entry for entry in comparison.entries if not any(f.split(" seed ")[0] == entry.name for f in failed)]
    if whole:
        results = measure(comparison, whole, _costs(comparison, whole, out), resamples)
        written = [*write_tables(results, out, reference == "oral"), *write_plots(results, out)]
        print_table(*results.text_table(reference == "oral"))
        if len(whole) > 1:
            print_table(*results.difference_table())
        for sentence in results.protocol(reference == "oral"):
            say(sentence)
        say(f"wrote {', '.join(str(path) for path in written)}")
    if failed:
        result = BatchResult(done=[entry.name for entry in whole], failed=failed)
        print_result(result, "run")
        raise typer.Exit(result.exit_code)


def _costs(comparison: Comparison, entries: list[Any], out: Path) -> dict[str, Cost]:
    from mhim.compare.cost import cost_of

    with progress_bar(transient=True) as progress:
        task = progress.add_task("measuring costs", total=len(entries))
        costs = {}
        for entry in entries:
            costs[entry.name] = cost_of(comparison.of(entry)[0], out / "costs" / f"{entry.name}.json")
            progress.advance(task)
    return costs


def _values(given: dict[str, Any], file: Path | None, assignments: list[str]) -> dict[str, Any]:
    """Configuration keys from the file, the options and ``--set``, later ones over earlier ones."""
    from mhim.config import merge, parse_overrides, read_yaml
    from mhim.errors import ConfigError

    places = {key: str(given[key].resolve()) for key in ("cohort", "features") if given[key]}
    train = {key: given[key] for key in ("epochs", "device") if given[key] is not None}
    options = places | ({"train": train} if train else {}) | ({"allow_missing": True} if given["allow_missing"] else {})
    values = merge(read_yaml(file) if file else {}, options, parse_overrides(assignments))
    missing = [f"--{key}" for key in ("cohort", "features") if not values.get(key)]
    if missing:
        raise ConfigError(f"compare: give {', '.join(missing)}, or a configuration file with --config")
    for key in ("model", "method"):
        if isinstance(values.get(key), str) or "name" in values.get(key, {}):
            raise ConfigError(f"compare: '{key}' is what is compared; give its options without a name")
    for key in ("seed", "splits"):
        if key in values:
            raise ConfigError(f"compare: '{key}' comes from --{key}{'s' * (key == 'seed')}; leave it out")
    return values


def _protocol(
    seeds: str, split: dict[str, Any], splits: Path | None, like: str, values: dict[str, Any], own: dict[str, Any]
) -> Protocol:
    from mhim.compare.plan import Like, Protocol
    from mhim.config import validate
    from mhim.errors import ConfigError
    from mhim.splits import SplitConfig

    numbers = tuple(dict.fromkeys(text.strip() for text in seeds.split(",") if text.strip()))
    if not numbers or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"--seeds {seeds}: expected whole numbers, as in 0,1,2")
    if like not in ("camelyon16", "tcga"):
        raise ConfigError(f"--like {like}: expected camelyon16 or tcga")
    config = validate(SplitConfig, split, "compare")
    given = None if splits is None else splits.resolve()
    return Protocol(tuple(map(int, numbers)), config, given, cast("Like", like), values, own)
