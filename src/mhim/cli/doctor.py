"""Verb that looks for faults before training: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mhim.batch import progress_bar
from mhim.cli.shared import examples, say


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim doctor --cohort cohort.csv --features features",
            "mhim doctor --cohort cohort.csv --features features --splits splits.csv --json",
        )
    )(doctor)


def doctor(
    cohort: Annotated[Path, typer.Option("--cohort", help="Cohort table: slide_id, case_id, label.")],
    features: Annotated[Path, typer.Option("--features", help="Folder of bag files.")],
    splits: Annotated[Path | None, typer.Option(help="Splits table: also look for leaks.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say in plain sentences what is wrong with a cohort, before any training.

    Looks at the table, every bag, the splits, and whether the size of the bags or the site alone tells the label.
    Exit code 1 when something is fatal. Writes nothing.
    """
    from dataclasses import asdict

    from mhim.doctor import diagnose

    with progress_bar(transient=True) as progress:
        task = progress.add_task("reading bags", total=None)
        findings = diagnose(cohort, features, splits, lambda total: progress.update(task, total=total, advance=1))
    fatal = sum(finding.severity == "fatal" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"fatal": fatal, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.severity}: {finding.sentence}")
        warnings = sum(finding.severity == "warning" for finding in findings)
        say(f"{fatal} fatal, {warnings} warning{'s' * (warnings != 1)}")
    if fatal:
        raise typer.Exit(1)
