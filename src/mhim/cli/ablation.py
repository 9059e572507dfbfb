"""Verbs that take MHIM apart on one's own cohort: ablate, robustness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mhim.batch import progress_bar
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
    from mhim.ablation import Planned, Study


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim ablate --cohort cohort.csv --features features --splits splits.csv -o ablation",
            "mhim ablate ... --models abmil,transmil --seeds 0,1,2 --table module -o ablation",
            "mhim ablate ... --splits folds_{seed}.csv --protocol iccv2023-camelyon16 --seeds 2021,2022 -o published",
        )
    )(ablate)
    app.command(
        epilog=examples(
            "mhim robustness runs/mhim/baseline runs/mhim -o robustness",
            "mhim robustness runs/abmil runs/mhim -o robustness --remove 0.05,0.5 --noise 2",
        )
    )(robustness)


def ablate(
    out: OutputDir,
    cohort: Annotated[Path | None, typer.Option(help="Cohort table: slide_id, case_id, label.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Splits table; {seed} in its name stands for the seed, one table each.")
    ] = None,
    models: Annotated[str, typer.Option(help="Aggregators, separated by commas.")] = "abmil",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    table: Annotated[str, typer.Option(help="module, strategy, teacher or all.")] = "all",
    like: Annotated[str, typer.Option(help="Published settings to start from: camelyon16 or tcga.")] = "camelyon16",
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of the schedule. Default 100.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, mps.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-j", min=0, help="Folds trained side by side.")] = 0,
    protocol: Annotated[
        str | None, typer.Option(help="Published protocol by name. Default: honest, chosen on validation.")
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Go on without slides that have no bag.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the published ablations of MHIM (module, strategy, teacher) on this cohort, beside the published numbers.

    All variants of an aggregator and a seed share one plain baseline. Run again, it goes on where it stopped.
    Writes OUT/table.csv, OUT/table.md and a run folder per variant, OUT/MODEL/seed_N/VARIANT.
    """
    from mhim.ablation import measure, plan_study
    from mhim.ablation_tables import csv_table, markdown, said_protocol, text_table
    from mhim.artefacts import write_text
    from mhim.training.crossval import clear_run, missing_folds
    from mhim.training.runs import write_table

    load_plugins(plugin)
    data = {"cohort": cohort, "features": features, "splits": splits, "epochs": epochs, "device": device}
    data |= {"protocol": protocol}
    study = _study(models, seeds, table, like, _values(data | {"allow_missing": allow_missing}, config, set_ or []))
    planned = plan_study(study, out)
    todo = {
        each.folder: len(each.plan.splits.folds if overwrite else missing_folds(each.plan, each.folder))
        for each in planned
    }
    folds = sum(todo.values())
    say(f"{len(planned)} runs, {folds} fold{'s' * (folds != 1)} to train")
    if dry_run:
        return
    if overwrite:
        for each in planned:
            clear_run(each.folder)
    _train(planned, todo, workers)
    cells = measure(study, planned)
    write_table(out / "table.csv", csv_table(study, cells))
    write_text(out / "table.md", markdown(study, planned, cells))
    for name in study.tables:
        print_table(*text_table(study, cells, name))
    for sentence in said_protocol(study, planned):
        say(sentence)
    say(f"wrote {out / 'table.csv'}, {out / 'table.md'}")


def _values(given: dict[str, Any], file: Path | None, assignments: list[str]) -> dict[str, Any]:
    """Configuration keys from the file, the options and ``--set``, later ones over earlier ones."""
    from mhim.config import merge, parse_overrides, read_yaml
    from mhim.errors import ConfigError

    places = {key: str(given[key].resolve()) for key in ("cohort", "features", "splits") if given[key]}
    train = {key: given[key] for key in ("epochs", "device") if given[key] is not None}
    options = places | ({"train": train} if train else {}) | ({"allow_missing": True} if given["allow_missing"] else {})
    options |= {"protocol": given["protocol"]} if given["protocol"] else {}
    values = merge(read_yaml(file) if file else {}, options, parse_overrides(assignments))
    missing = [f"--{key}" for key in ("cohort", "features", "splits") if not values.get(key)]
    if missing:
        raise ConfigError(f"ablate: give {', '.join(missing)}, or a configuration file with --config")
    for key in ("model", "method"):
        if isinstance(values.get(key), str) or "name" in values.get(key, {}):
            raise ConfigError(f"ablate: '{key}' is what is compared; give its options without a name")
    return values


def _study(models: str, seeds: str, table: str, like: str, values: dict[str, Any]) -> Study:
    from mhim.ablation import TABLES, Like, Study
    from mhim.errors import ConfigError

    names = tuple(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
    numbers = tuple(dict.fromkeys(text.strip() for text in seeds.split(",") if text.strip()))
    if not names:
        raise ConfigError("--models names no aggregator")
    if not numbers or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"--seeds {seeds}: expected whole numbers, as in 0,1,2")
    if table not in (*TABLES, "all"):
        raise ConfigError(f"--table {table}: expected {', '.join(TABLES)} or all")
    if like not in ("camelyon16", "tcga"):
        raise ConfigError(f"--like {like}: expected camelyon16 or tcga")
    tables = tuple(TABLES) if table == "all" else (table,)
    return Study(names, tuple(map(int, numbers)), tables, cast("Like", like), values)


def _train(planned: list[Planned], todo: dict[Path, int], workers: int) -> None:
    from mhim.training.crossval import train_run
    from mhim.training.fit import Epoch

    with progress_bar() as progress:
        task = progress.add_task("folds", total=sum(todo.values()))
        for each in planned:
            label = f"{each.model} seed {each.seed} {each.variant}"
            progress.update(task, description=label)

            def show(fold: int, epoch: Epoch, label: str = label) -> None:
                progress.update(task, description=f"{label} (fold {fold} epoch {epoch.epoch})")

            train_run(each.plan, each.folder, workers, each.baseline, show, lambda fold: progress.advance(task))


def robustness(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is what others are compared with.")],
    out: OutputDir,
    remove: Annotated[str, typer.Option(help="Shares of most attended instances to remove.")] = "0.01,0.05,0.1,0.2",
    noise: Annotated[str, typer.Option(help="Noise, in standard deviations of each feature.")] = "0.25,0.5,1",
    features: Annotated[Path | None, typer.Option(help="Folder of bag files. Default: the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    plugin: Plugin = None,
    dry_run: DryRun = False,
) -> None:
    """Score runs on disturbed test slides: without what the model attends to most, and with noisy features.

    Every slide is scored by the fold that tested it. Writes OUT/robustness.csv. Seeds of one configuration make
    one row.
    """
    from mhim.config import validate
    from mhim.robustness import RobustnessConfig, csv_table, text_table
    from mhim.robustness import robustness as hold
    from mhim.training.runs import open_run, write_table

    load_plugins(plugin)
    values = {"remove": _numbers(remove), "noise": _numbers(noise), "seed": seed, "resamples": resamples}
    config = validate(RobustnessConfig, values | {"features": features, "device": device}, "robustness")
    opened = [open_run(path) for path in runs]
    if dry_run:
        say(f"would score {len(opened)} runs under {', '.join(each.name for each in config.conditions)}")
        return
    results = hold(opened, config)
    write_table(out / "robustness.csv", csv_table(results))
    print_table(*text_table(results))
    say(f"wrote {out / 'robustness.csv'}")


def _numbers(text: str) -> list[str]:
    """The parts of a comma-separated list; whether they are numbers is for the configuration to say."""
    return [part.strip() for part in text.split(",") if part.strip()]
