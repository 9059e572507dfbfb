"""The verb ``demo``: the other verbs on a synthetic cohort, from pixels to a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mhim.batch import console
from mhim.cli.shared import DryRun, Workers, examples


def add_to(app: typer.Typer) -> None:
    """Add the verb to the program; it runs the program's own verbs."""

    def demo(
        out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
        small: Annotated[bool, typer.Option("--small", help="Fewer, smaller slides: under a minute.")] = False,
        seed: Annotated[int, typer.Option(min=0, help="Seed of slides, splits and training.")] = 0,
        workers: Workers = 2,
        dry_run: DryRun = False,
    ) -> None:
        """Make a synthetic cohort, train AB-MIL and MHIM on it, print the comparison, write a report.

        Runs offline. Every line that starts with $ is a command that you can run on your own slides.
        """
        for line in demo_commands(out, small, seed, workers):
            console.print(f"\n$ mhim {shlex.join(line)}", highlight=False, style="bold")
            if dry_run:
                continue
            code = app(line, standalone_mode=False)
            if code:
                raise typer.Exit(int(code))
        console.print(f"\nreport: {out / 'report.html'}", highlight=False)

    app.command(epilog=examples("mhim demo", "mhim demo --small -o try"))(demo)


def demo_commands(out: Path, small: bool, seed: int, workers: int) -> list[list[str]]:
    """The command lines of the demo, in order, without the program's name."""
    cohort, tiles, features, splits = out / "cohort" / "cohort.csv", out / "tiles", out / "features", out / "splits.csv"
    run, maps, report = out / "runs" / "mhim", out / "maps", out / "report.html"
    size = ["--slides", 16, "--cases", 14, "--set", "width_um=1100", "--set", "height_um=1100"]
    schedule = ["--epochs", 12, "--set", "train.min_epochs=8"]
    if not small:
        size, schedule = ["--slides", 60, "--cases", 40], ["--epochs", 60]
    drawn, parallel, both = ["--seed", seed], ["--workers", workers], [run / "baseline", run]
    lines = [
        ["synth", "-o", cohort.parent, *size, *drawn, *parallel],
        ["tile", cohort, "-o", tiles, "--target-mpp", 0.75, "--tile-px", 96, *parallel],
        ["encode", tiles, "-o", features, "--encoder", "efficientnet-lite0-mid", *parallel],
        ["split", cohort, "-o", splits, "--folds", 2 if small else 4, *drawn],
        ["train", "--cohort", cohort, "--features", features, "--splits", splits, "-o", run, *schedule]
        + ["--set", "train.standardise=true", "--set", "train.threads=1", *drawn, *parallel],
        ["evaluate", *both, "--markdown", out / "results.md"],
        ["heatmap", run, "--with-baseline", "--max-slides", 4 if small else 24, "-o", maps],
        ["report", *both, "--maps", maps, "-o", report],
    ]
    return [[str(word) for word in line] for line in lines]
