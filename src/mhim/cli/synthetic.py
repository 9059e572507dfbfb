"""Verbs: synth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
            "mhim synth --like camelyon16 --meta META --pool patches.npz -o data/simulated --set tile_scale=0.1",
        ),
    )(synth)


def synth(
    out: OutputDir,
    like: Annotated[
        Literal["camelyon16"] | None, typer.Option(help="Simulate bags of features with this set's slides instead.")
    ] = None,
    meta: Annotated[Path | None, typer.Option(help="With --like: folder of slide tables and tumour outlines.")] = None,
    pool: Annotated[Path | None, typer.Option(help="With --like: NPZ of patches (features, label, group).")] = None,
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

    With --like camelyon16 it makes bags of features instead of slides, a simulation: the listed slides, their real
    tumour outlines, and features drawn from a pool of real patches.
    """
    if like is not None or meta is not None or pool is not None:
        given = {"n_slides": slides, "n_cases": cases, "seed": seed, "meta": meta, "pool": pool}
        _simulate(out, like, given, config, settings, workers, dry_run, overwrite)
        return
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


def _simulate(
    out: Path,
    like: str | None,
    given: dict[str, Any],
    config: Path | None,
    settings: list[str] | None,
    workers: int,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """``mhim synth --like``: bags instead of slides."""
    from mhim.batch import console
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.errors import ConfigError
    from mhim.synth.camelyon import make_simulation, missing_bags
    from mhim.synth.camelyon_config import CamelyonConfig

    if like is None:
        raise ConfigError("synth: --meta and --pool go with --like camelyon16")
    if given.pop("n_slides") is not None or given.pop("n_cases") is not None:
        raise ConfigError(f"synth: --slides and --cases do not go with --like {like}, whose slides are listed")
    named = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    values = merge(
        read_yaml(config) if config else {},
        {key: value for key, value in named.items() if value is not None},
        parse_overrides(settings or ()),
    )
    missing = [f"--{key}" for key in ("meta", "pool") if not values.get(key)]
    if missing:
        raise ConfigError(f"synth --like {like}: give {', '.join(missing)}, see docs/camelyon16_simulation.md")
    chosen = validate(CamelyonConfig, values, str(config) if config else f"mhim synth --like {like}")
    if dry_run:
        plans, todo = missing_bags(out, chosen, overwrite=overwrite)
        console.print(f"would simulate {len(todo)} of {len(plans)} bags in {out}")
        return
    result = make_simulation(out, chosen, workers, overwrite=overwrite)
    if not result.failed:
        console.print(f"cohort table of the simulation: {out / 'cohort.csv'}")
    finish(result)
