"""Verbs: synth."""

from __future__ import annotations

from typing import Annotated

import typer

from mhim.cli.shared import ConfigOption, DryRun, OutputDir, Overwrite, SetOption, Workers, examples, finish


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        "synth",
        epilog=examples(
            "mhim synth -o data/synth",
            "mhim synth -o data/small --slides 16 --cases 12 --set width_um=1200 --set height_um=1200",
            "mhim synth -o data/rare --set tumour_fraction_max=0.01 --seed 1",
        ),
    )(synth)


def synth(
    out: OutputDir,
    slides: Annotated[int | None, typer.Option(help="Slides in the cohort (60 unless configured).")] = None,
    cases: Annotated[int | None, typer.Option(help="Cases they come from (40).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the same seed gives the same bytes (0).")] = None,
    workers: Workers = 2,
    config: ConfigOption = None,
    settings: SetOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Make synthetic H&E slides with exact tumour masks.

    Writes pyramidal TIFF slides, tumour masks, truth.csv and cohort.csv. A second run makes only what is missing.
    """
    from mhim.batch import console
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.synth import SynthConfig, make_cohort, missing

    given = {"n_slides": slides, "n_cases": cases, "seed": seed}
    values = merge(
        read_yaml(config) if config else {},
        {key: value for key, value in given.items() if value is not None},
        parse_overrides(settings or ()),
    )
    chosen = validate(SynthConfig, values, str(config) if config else "mhim synth")
    if dry_run:
        todo = missing(out, chosen, overwrite=overwrite)
        console.print(f"would make {len(todo)} of {chosen.n_slides} slides of {chosen.n_cases} cases in {out}")
        return
    result = make_cohort(out, chosen, workers, overwrite=overwrite)
    if not result.failed:
        console.print(f"cohort table: {out / 'cohort.csv'}")
    finish(result)
