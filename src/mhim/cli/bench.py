"""Verb that measures what models cost: bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mhim.batch import progress_bar
from mhim.cli.shared import DryRun, Overwrite, Plugin, examples, load_plugins, names_in, print_table, say

if TYPE_CHECKING:
    from mhim.bench.result import BenchConfig, BenchResult

MHIM_AROUND = ("abmil", "dsmil", "transmil")


def add_to(app: typer.Typer) -> None:
    """Add the verb of this module to the program."""
    app.command(
        epilog=examples(
            "mhim bench   (every model and MHIM around AB-MIL, DSMIL, TransMIL: some minutes)",
            "mhim bench --models abmil,mhim-abmil --sizes 1024,8192,65536 --bags 3",
            "mhim bench --device cuda --precision bfloat16 --sizes 4096,16384 --bags 20",
            "mhim bench --models yardstick,abmil,mhim-abmil -o before.json",
            "mhim bench --models yardstick,abmil,mhim-abmil --against before.json   (exit 1 when one became slower)",
        )
    )(bench)


def bench(
    models: Annotated[
        str | None,
        typer.Option(help="Aggregators, or behind mhim- or mhim-v2-; yardstick: PyTorch's own layers. Default: all."),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Instances of the bags, taken in turn.")] = "1024,4096,16384",
    bags: Annotated[int, typer.Option(min=1, help="Bags of an epoch; at least one of each size.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Measured epochs, after a warm-up one.")] = 3,
    phase: Annotated[str, typer.Option(help="train, infer or both.")] = "both",
    dim: Annotated[int, typer.Option(min=1, help="Feature width.")] = 1024,
    classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 2,
    stored: Annotated[str, typer.Option(help="Features in float16 or float32.")] = "float16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of matrix products: float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, bags and masks.")] = 0,
    against: Annotated[Path | None, typer.Option(help="Earlier result: compare ratios to --reference with it.")] = None,
    reference: Annotated[str, typer.Option(help="Entry that others are divided by.")] = "yardstick",
    tolerance: Annotated[float, typer.Option(min=0, help="By how much a ratio may grow: 0.2 is a fifth.")] = 0.2,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to keep the result in (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure what models cost on synthetic bags: parameters, time and peak memory, in training and inference.

    Each entry runs in a process of its own, all of them in turn, bag after bag; medians over rounds. On one thread of a
    processor, times are processor time, which other programs hardly change. With --against, exit code 1 when a
    ratio to the reference worsened by more than --tolerance; seconds are never compared.
    """
    from mhim.bench.result import BenchConfig, changes, read_result
    from mhim.bench.tables import change_table
    from mhim.config import validate
    from mhim.errors import ArtefactError, ConfigError

    load_plugins(plugin)
    values = {
        "models": names_in(models) or _all(),
        "sizes": _numbers(sizes),
        "bags": bags,
        "rounds": rounds,
        "phases": ["train", "infer"] if phase == "both" else [phase],
        "in_dim": dim,
        "classes": classes,
        "stored": stored,
        "device": device,
        "precision": precision,
        "threads": threads,
        "seed": seed,
    }
    config = validate(BenchConfig, values, "bench")
    before = None if against is None else read_result(against)
    if before is not None and reference not in config.models:
        raise ConfigError(f"--reference {reference}: is not measured; add it to --models")
    if out is not None and out.exists() and not overwrite:
        raise ArtefactError(f"{out}: exists; give another --out, or --overwrite")
    if dry_run:
        _say_plan(config)
        return
    result = _measure(config)
    _show(result, reference, out, as_json)
    found = [] if before is None else changes(result, before, reference, tolerance)
    if before is not None:
        print_table(*change_table(found, reference)) if not as_json else None
        say(f"{sum(each.is_worse for each in found)} of {len(found)} ratios worsened by more than {tolerance:.0%}")
    if any(each.is_worse for each in found) or any(entry.failed for entry in result.entries.values()):
        raise typer.Exit(1)


def _all() -> list[str]:
    from mhim.bench.yardstick import YARDSTICK
    from mhim.models import models

    return [YARDSTICK, *models, *(f"mhim-{name}" for name in MHIM_AROUND)]


def _numbers(text: str) -> list[int]:
    from mhim.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--sizes {text}: expected whole numbers, as in 1024,8192")
    return [int(part) for part in parts]


def _say_plan(config: BenchConfig) -> None:
    from mhim.bench.worker import rows_needed

    octets = rows_needed(config) * config.in_dim * (2 if config.stored == "float16" else 4)
    say(
        f"would measure {len(config.models)} entries ({', '.join(config.models)}): {config.rounds} epochs of "
        f"{len(config.epoch)} bags of {', '.join(map(str, config.sizes))} instances, {octets / 1e6:.0f} MB of bags"
    )


def _measure(config: BenchConfig) -> BenchResult:
    from mhim.bench.run import run_bench

    with progress_bar(transient=True) as progress:
        task = progress.add_task("measuring", total=len(config.models) * len(config.phases) * (config.rounds + 1))

        def step(what: str) -> None:
            progress.update(task, advance=1, description=f"measuring {what}")

        return run_bench(config, step)


def _show(result: BenchResult, reference: str, out: Path | None, as_json: bool) -> None:
    """Print and keep the result."""
    from mhim.artefacts import write_json
    from mhim.batch import print_failures
    from mhim.bench.tables import cost_table, growth_table

    if out is not None:
        write_json(out, result.model_dump(mode="json"))
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        print_table(*cost_table(result, reference))
        for phase in result.config.phases if len(result.config.sizes) > 1 else ():
            print_table(*growth_table(result, phase))
        config = result.config
        say(
            f"{result.device}, {config.threads} thread(s), {config.precision}, features {config.in_dim} x "
            f"{config.stored}; an epoch: {len(config.epoch)} bags; median of {config.rounds} rounds"
        )
    print_failures([(name, entry.failed) for name, entry in result.entries.items() if entry.failed], "entry")
    if out is not None:
        say(f"wrote {out}")
