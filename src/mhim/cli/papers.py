"""Verbs that do something again and compare: reproduce, reproduce-paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhim.batch import progress_bar
from mhim.cli.shared import DryRun, OutputDir, Plugin, Workers, examples, load_plugins, print_table, say

if TYPE_CHECKING:
    from mhim.papers.repetition import Recipe


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim reproduce runs/mhim -o runs/again",
            "mhim reproduce runs/mhim -o runs/again --features new/place/features",
            "mhim reproduce runs/mhim -o runs/again --dry-run",
        )
    )(reproduce)
    app.command(
        "reproduce-paper",
        epilog=examples(
            "mhim reproduce-paper ilse2018 --data musk1.npz -o papers --workers 2",
            "mhim reproduce-paper ilse2018 --data ucsb_breast_cancer.npz --lr 0.0005 --weight-decay 0.005 -o papers",
            "mhim reproduce-paper dsmil2021 --data musk1.npz -o papers",
        ),
    )(reproduce_paper)


def reproduce(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: OutputDir,
    cohort: Annotated[Path | None, typer.Option(help="Cohort table, if it has moved.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files, if it has moved.")] = None,
    splits: Annotated[Path | None, typer.Option(help="Splits table, if it has moved.")] = None,
    workers: Workers = 0,
    plugin: Plugin = None,
    dry_run: DryRun = False,
) -> None:
    """Train a run again from its folder, and say whether it is equal bit for bit or what differs.

    Says first what has changed since (data by slide, folds, code, libraries, machine); --dry-run stops there. Exit code
    1 when something differs. Run again, it goes on where it stopped.
    """
    from mhim.reproduce import compare_runs, plan_again, train_again, what_changed

    load_plugins(plugin)
    places = {"cohort": cohort, "features": features, "splits": splits}
    opened, plan = plan_again(run, {key: value for key, value in places.items() if value is not None})
    changes = what_changed(opened, plan)
    for change in changes:
        say(f"{change.part}: {change.sentence}")
    if not changes:
        say("data, configuration, code, libraries and machine are as they were")
    if dry_run:
        raise typer.Exit(1 if changes else 0)
    stages = list(plan.stages)
    with progress_bar() as progress:
        task = progress.add_task("folds", total=sum(len(part.splits.folds) for _, part in stages))
        again = train_again(opened, plan, out, workers, on_fold=lambda fold: progress.advance(task))
    results = compare_runs(opened, again)
    for result in results:
        typer.echo(f"{result.part}: {result.sentence}")
    if results:
        raise typer.Exit(1)
    typer.echo(f"equal: weights, predictions and histories of {len(opened.folds)} folds, bit for bit")


def reproduce_paper(
    paper: Annotated[str, typer.Argument(help="ilse2018: AB-MIL and gated AB-MIL. dsmil2021: DSMIL.")],
    out: OutputDir,
    data: Annotated[Path, typer.Option("--data", help="Set: features, bag_index, bag_label, test_fold (.npz).")],
    network: Annotated[str, typer.Option(help="One of the paper's networks (ilse2018: attention, gated).")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of the cross-validation, as many as there are.")] = 5,
    lr: Annotated[float | None, typer.Option(help="Learning rate instead of the paper's for this set.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay instead of the paper's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs instead of the paper's.")] = None,
    dropout: Annotated[float | None, typer.Option(min=0, max=0.95, help="ilse2018: after each hidden layer.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and bag order.")] = 0,
    workers: Workers = 0,
    dry_run: DryRun = False,
) -> None:
    """Run a paper's experiment on a public set by that paper's protocol, beside the published number.

    The recipe follows the set's name (musk1, musk2, fox, tiger, elephant); other sets take the defaults. Where the
    paper let the test fold choose epoch and threshold (dsmil2021), the table says so and shows the honest number
    beside it. Run again, it goes on with the repetitions that are not done. Writes OUT/PAPER/SET/results.md,
    results.json and a file a repetition.
    """
    from mhim.errors import ConfigError
    from mhim.papers.catalogue import paper as find_paper
    from mhim.papers.mil_sets import read_mil_set
    from mhim.papers.reproduce import HEADER, notes, plan_tasks, run_tasks, summarise, texts, write_results

    chosen = find_paper(paper)
    if network not in ("all", *chosen.networks):
        raise ConfigError(f"--network {network}: expected {', '.join(chosen.networks)} or all")
    if dropout is not None and not chosen.has_dropout:
        raise ConfigError(f"--dropout: {paper} has no dropout; leave it out")
    bags = read_mil_set(data)
    changes = {"lr": lr, "weight_decay": weight_decay, "epochs": epochs, "dropout": dropout}
    recipe = _recipe(chosen.recipe(bags.name), changes)
    networks = list(chosen.networks) if network == "all" else [network]
    tasks = plan_tasks(chosen, bags, networks, repeats, recipe, seed, out)
    todo = sum(not task.is_done() for task in tasks)
    say(
        f"{bags.name}: {todo} of {len(tasks)} repetitions to run, lr {recipe.lr:g}, "
        f"weight decay {recipe.weight_decay:g}"
    )
    if dry_run:
        return
    with progress_bar() as progress:
        bar = progress.add_task(f"{bags.name}, repetitions", total=todo)
        run_tasks(tasks, workers, lambda: progress.advance(bar))
    rows, sentences = summarise(tasks), notes(chosen, recipe, bags)
    path = write_results(chosen, rows, sentences, tasks[0].file.parent.parent)
    print_table(HEADER, [texts(row) for row in rows])
    for sentence in sentences:
        say(sentence)
    say(f"wrote {path}")


def _recipe(recipe: Recipe, given: dict[str, Any]) -> Recipe:
    """A recipe with what the user changed; a changed one is no longer the paper's."""
    from dataclasses import replace

    from mhim.errors import ConfigError

    changes = {key: value for key, value in given.items() if value is not None}
    for key in ("lr", "weight_decay"):
        if key in changes and changes[key] < 0:
            raise ConfigError(f"--{key.replace('_', '-')} {changes[key]}: expected a positive number")
    return replace(recipe, **changes, stated=recipe.stated and not changes)
