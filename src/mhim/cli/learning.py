"""Verbs that learn and score: split, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mhim.batch import progress_bar
from mhim.cli.shared import (
    ConfigOption,
    DryRun,
    Overwrite,
    Plugin,
    PresetOption,
    SetOption,
    examples,
    load_plugins,
    print_table,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhim.cohort import Cohort
    from mhim.splits import SplitConfig, Splits
    from mhim.training.crossval import RunPlan
    from mhim.training.runs import RunConfig

TaskOption = Annotated[
    str | None, typer.Option("--task", help="classification (default) of the column label, or survival: time, event.")
]
CohortOption = Annotated[Path, typer.Option("--cohort", help="Cohort table: slide_id, case_id, label.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim split cohort.csv -o splits.csv --folds 5",
            "mhim split cohort.csv -o splits.csv --site leave-one-out",
            "mhim split cohort.csv -o splits.csv --from clam/splits/task_100",
            "mhim split cohort.csv -o splits.csv --protocol iccv2023-camelyon16 --seed 2021",
            "mhim split cohort.csv -o splits.csv --task survival",
        )
    )(split)
    app.command(
        epilog=examples(
            "mhim train --cohort cohort.csv --features features --splits splits.csv -o runs/mhim",
            "mhim train ... --method supervised -o runs/abmil",
            "mhim train ... --set model.gated=true --set method.mask.name=lr-ham -o runs/lr-ham",
            "mhim train ... --preset iccv2023/transmil-camelyon16 -o runs/transmil",
            "mhim train ... --task survival --method mhim-v2 -o runs/survival",
            "mhim train -c run.yaml -o runs/again",
        )
    )(train)
    app.command(
        epilog=examples(
            "mhim evaluate runs/mhim",
            "mhim evaluate runs/abmil runs/mhim --markdown table.md",
            "mhim evaluate runs/mhim_0 runs/mhim_1 --compare runs/abmil_0 --compare runs/abmil_1",
            "mhim evaluate runs/mhim --by-case mean",
        )
    )(evaluate)


def split(
    cohort: Annotated[Path, typer.Argument(help="Cohort table: slide_id, case_id, label.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Splits table to write.")],
    folds: Annotated[
        int | None, typer.Option(min=2, help="Number of folds; every case is tested once. Default 5.")
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of a fold's other cases used for validation. Default 0.2.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the assignment. Default 0, or a protocol's first published one.")
    ] = None,
    use_fold_column: Annotated[bool, typer.Option(help="Take test folds from the column 'fold'.")] = False,
    site: Annotated[
        str,
        typer.Option(
            help="ignore; stratify by site too; preserve (each site in one fold); leave-one-out (a fold a site)."
        ),
    ] = "ignore",
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Split files of CLAM (folder), STAMP, Patho-Bench, MHIM, or a table of parts."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Folds of a published protocol, by its --seed. Not honest; see the docs.")
    ] = None,
    task: TaskOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Split cases into train, validation and test part, stratified by label; for survival by event and time."""
    from mhim.errors import ArtefactError
    from mhim.splits import read_splits, write_splits
    from mhim.training.runs import tasks

    values = {
        "folds": folds,
        "val_fraction": val_fraction,
        "seed": seed,
        "use_fold_column": use_fold_column,
        "site": site,
    }
    read_cohort = tasks.build(tasks.parse(task or "classification")).read_cohort
    splits = _splits_of(read_cohort(cohort), values, source, protocol)
    for fold in splits.folds:
        val = "the test part as" if fold.validates_on_test else str(len(fold.val))
        say(f"fold {fold.index}: {len(fold.train)} train, {val} val, {len(fold.test)} test cases")
    if dry_run:
        return
    if out.exists() and not overwrite:
        if read_splits(out) == splits:
            say(f"{out} already holds these folds")
            return
        raise ArtefactError(f"{out}: holds other folds; give another --out, or --overwrite")
    write_splits(out, splits)
    say(f"wrote {out}")


def _splits_of(cohort: Cohort, values: dict[str, Any], source: Path | None, protocol: str | None) -> Splits:
    """Drawn folds, those of another program's files, or those of a published protocol."""
    from mhim.config import validate
    from mhim.errors import ConfigError
    from mhim.split_files import read_foreign_splits
    from mhim.splits import SplitConfig, make_splits

    config = validate(SplitConfig, {key: value for key, value in values.items() if value is not None}, "split")
    drawn = {"--folds": values["folds"], "--use-fold-column": config.use_fold_column, "--site": config.site != "ignore"}
    if source is not None:
        useless = [name for name, given in (drawn | {"--protocol": protocol}).items() if given]
        if useless:
            raise ConfigError(f"split: {useless[0]} has no effect with --from; leave one of them out")
        found = read_foreign_splits(source, cohort, config)
        drew = (
            f"; it has no validation part, {config.val_fraction:.0%} of training was drawn"
            if found.drew_validation
            else ""
        )
        say(f"{source}: {found.layout} layout{drew}")
        return found.splits
    if protocol not in (None, "honest"):
        return _published_splits(cohort, config, values, protocol)
    fixed = "--use-fold-column" if config.use_fold_column else "--site leave-one-out"
    if values["folds"] and (config.use_fold_column or config.site == "leave-one-out"):
        raise ConfigError(f"split: {fixed} sets the number of folds; leave --folds out")
    return make_splits(cohort, config)


def _published_splits(cohort: Cohort, config: SplitConfig, values: dict[str, Any], protocol: str) -> Splits:
    """The folds of a published protocol, and what has to be known about them."""
    from mhim.cohort import SurvivalCohort
    from mhim.errors import ConfigError
    from mhim.protocols import protocol as find_protocol
    from mhim.protocols import published_splits

    chosen = find_protocol(protocol)
    if config.use_fold_column or config.site != "ignore" or values["val_fraction"] is not None:
        useless = "--use-fold-column, --site and --val-fraction"
        raise ConfigError(f"split: protocol {protocol} draws its own folds; leave {useless} out")
    task = "survival" if isinstance(cohort, SurvivalCohort) else "classification"
    if task != chosen.task:
        raise ConfigError(f"split: protocol {protocol} is for --task {chosen.task}, not {task}")
    seed = chosen.seeds[0] if values["seed"] is None else values["seed"]
    splits = published_splits(cohort, chosen, seed, values["folds"])
    published = ", ".join(map(str, chosen.seeds))
    said = "published" if seed in chosen.seeds else "not a published one"
    say(f"note: {chosen.caution}")
    say(f"seed {seed}, {said} (published: {published}); the folds depend on the order of the table")
    return splits


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
    cohort: Annotated[Path | None, typer.Option(help="Cohort table: slide_id, case_id, label.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files.")] = None,
    splits: Annotated[Path | None, typer.Option(help="Splits table.")] = None,
    task: TaskOption = None,
    model: Annotated[str | None, typer.Option(help="Aggregator. Default abmil.")] = None,
    method: Annotated[str | None, typer.Option(help="mhim-v1 (default), mhim-v2 or supervised.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed. Default 0.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of the schedule. Default 100.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, mps.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Plain run of the same cohort, splits and seed to start from.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-j", min=0, help="Folds trained side by side.")] = 0,
    protocol: Annotated[
        str | None, typer.Option(help="Published protocol by name. Default: honest, chosen on validation.")
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Go on without slides that have no bag.")] = False,
    preset: PresetOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an aggregator by cross-validation, score it on the test parts, write a run folder.

    Later ones win: presets in their order, the configuration file, the options here, --set.

    MHIM is two-stage: the plain baseline of each fold is trained first, in OUT/baseline, or taken
    from --baseline when it is the same cohort, splits and seed.
    """
    from mhim.evaluation import caution_of, summarise, table_rows, write_metrics
    from mhim.training.crossval import clear_run, plan_run, require_baseline
    from mhim.training.runs import open_run

    load_plugins(plugin)
    options = {
        "cohort": cohort and str(cohort),
        "features": features and str(features),
        "splits": splits and str(splits),
        "task": task and {"name": task},
        "model": model and {"name": model},
        "method": method and {"name": method},
        "seed": seed,
        "train": {"epochs": epochs, "device": device},
        "allow_missing": allow_missing or None,
        "protocol": protocol,
    }
    resolved = run_config(config, options, set_ or [], preset or [])
    if baseline is not None:
        _check_baseline(baseline, resolved, out, overwrite)
    plan = plan_run(resolved)
    if baseline is not None and plan.baseline is not None:
        require_baseline(baseline, plan.baseline)
    _say_plan(plan, out, baseline, overwrite)
    if dry_run:
        return
    if overwrite:
        clear_run(out)
    _train_stages(plan, out, baseline, workers)
    folders = {stage: out / stage for stage, _ in plan.stages}
    for folder in folders.values() if baseline is None else [out]:
        write_metrics(open_run(folder))
    if baseline is not None:
        folders["baseline"] = baseline
    opened = [open_run(folder) for folder in folders.values()]
    print_table(*table_rows(summarise(opened)))
    for note in caution_of(opened):
        say(note)
    say(f"wrote {out}")


def _check_baseline(baseline: Path, config: RunConfig, out: Path, overwrite: bool) -> None:
    """What can be said about a given baseline before any data is read."""
    from mhim.errors import ConfigError
    from mhim.methods import methods
    from mhim.training.crossval import require_baseline_recipe

    if not methods[config.method.name].needs_baseline(config.method):
        raise ConfigError(f"--baseline {baseline}: {config.title} starts from no baseline; leave it out")
    if overwrite and baseline.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--baseline {baseline}: --overwrite would remove it with {out}; give another --out")
    require_baseline_recipe(baseline, config)


def _say_plan(plan: RunPlan, out: Path, baseline: Path | None, overwrite: bool) -> None:
    """Say what would be trained, and which bags are not used."""
    from mhim.training.crossval import missing_folds

    for stage, part in plan.stages:
        if stage == "baseline" and baseline is not None:
            continue
        total = len(part.splits.folds)
        todo = total if overwrite else len(missing_folds(part, out / stage))
        say(f"{part.config.title}: {todo} of {total} folds to train")
    extra = plan.features.unlabelled
    if extra:
        say(f"note: {len(extra)} bags have no row in {plan.cohort.source} and are not used (first: {extra[0]})")


def run_config(
    file: Path | None, options: dict[str, Any], assignments: list[str], presets: Sequence[str] = ()
) -> RunConfig:
    """The run that presets, a file, options and ``--set`` describe together; later ones win.

    Raises:
        ConfigError: unknown names or keys, values out of range, or no data named.
    """
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.errors import ConfigError
    from mhim.presets import preset_values
    from mhim.training.runs import RunConfig

    given = {key: value for key, value in options.items() if value is not None}
    given["train"] = {key: value for key, value in given["train"].items() if value is not None}
    values = merge(preset_values(list(presets)), read_yaml(file) if file else {}, given, parse_overrides(assignments))
    for key, default in (("task", "classification"), ("model", "abmil"), ("method", "mhim-v1")):
        if isinstance(values.get(key), dict):
            values[key].setdefault("name", default)
    missing = [f"--{key}" for key in ("cohort", "features", "splits") if not values.get(key)]
    if missing:
        raise ConfigError(f"train: give {', '.join(missing)}, or a configuration file with --config")
    config = validate(RunConfig, values, str(file or "train"))
    places = {key: getattr(config, key).resolve() for key in ("cohort", "features", "splits")}
    return config.model_copy(update=places)


def _train_stages(plan: RunPlan, out: Path, baseline: Path | None, workers: int) -> None:
    from mhim.training.crossval import missing_folds, train_run
    from mhim.training.fit import Epoch

    with progress_bar() as progress:
        for stage, part in plan.stages:
            if stage == "baseline" and baseline is not None:
                continue
            todo = missing_folds(part, out / stage)
            label = f"{part.config.title}, folds"
            task = progress.add_task(label, total=len(todo))

            def show(fold: int, epoch: Epoch, task: Any = task, label: str = label) -> None:
                score = "-" if epoch.val_score is None else f"{epoch.val_score:.3f}"
                name = {"auroc": "AUROC", "c_index": "C-index"}.get(epoch.metric, epoch.metric)
                progress.update(task, description=f"{label} (fold {fold} epoch {epoch.epoch} val {name} {score})")

            def count(fold: int, task: Any = task) -> None:
                progress.advance(task)

            start = None if part.baseline is None else (baseline or out / "baseline")
            train_run(part, out / stage, workers, start, show, count)
            progress.update(task, description=label)


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; without --compare, the first is the reference.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run to compare with, pair by pair over folds and seeds, with tests. Repeatable: one a seed."
        ),
    ] = None,
    case: Annotated[
        Literal["mean", "max"] | None,
        typer.Option(
            "--by-case", help="Score cases, not slides: mean of their slides' probabilities, or the highest slide."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table in Markdown here.")] = None,
    plugin: Plugin = None,
) -> None:
    """Score runs on their test parts: metrics with case-bootstrap intervals, differences on the same draws.

    Writes metrics.json (--by-case: metrics_by_case.json) into every run folder. Runs of the same model and method
    (several seeds) make one row. With --compare, two questions are answered for each other row, each with its interval
    and p: would the difference hold on other patients (case bootstrap, DeLong), and with other training sets
    (corrected t-test over folds and seeds)?
    """
    from mhim.artefacts import write_text
    from mhim.case_level import by_case, sentence
    from mhim.evaluation import caution_of, markdown_rows, summarise, table_rows, write_metrics
    from mhim.paired_runs import HEADER, compare_summaries, paired_notes, paired_rows
    from mhim.training.runs import open_run

    load_plugins(plugin)
    opened = [open_run(path) for path in [*(compare or []), *runs]]
    if case is not None:
        opened = [by_case(run, case) for run in opened]
    for run in opened:
        write_metrics(run, resamples)
    summaries = summarise(opened, resamples)
    tables, notes = [table_rows(summaries)], [*caution_of(opened), *([] if case is None else [sentence(case)])]
    if compare:
        pairs = compare_summaries(opened, summaries, resamples)
        tables.append((list(HEADER), paired_rows(summaries, pairs)))
        notes += paired_notes(summaries, pairs, resamples)
    for table in tables:
        print_table(*table)
    for note in notes:
        say(note)
    if markdown is not None:
        write_text(
            markdown, "\n".join([*(markdown_rows(*table) for table in tables), *(f"{note}\n" for note in notes)])
        )
        say(f"wrote {markdown}")
