"""Verbs that make pictures for people: figure, sheet, mining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhim.batch import console
from mhim.cli.results import MapNames, RunPaths, Smooth, WithBaseline, open_runs
from mhim.cli.shared import DryRun, OutputDir, Overwrite, Plugin, examples, finish, load_plugins, names_in

Cohort = Annotated[Path | None, typer.Option(help="Cohort table with slides. Default: the run's.")]
Features = Annotated[Path | None, typer.Option(help="Folder of bag files. Default: the run's.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim figure runs/mhim --with-baseline --slide slide-1 -o figure.pdf",
            "mhim figure --slide slide-1 --runs runs/abmil,runs/mhim",
            "mhim figure runs/abmil runs/mhim --slide slide-1 -o figure.png --dpi 200 --map attention",
        )
    )(figure)
    app.command(
        epilog=examples(
            "mhim sheet runs/mhim -o sheets",
            "mhim sheet runs/mhim --with-baseline -o sheets --slides slide-1,slide-2 --tiles 18 --per-slide 18",
        )
    )(sheet)
    app.command(
        epilog=examples(
            "mhim mining runs/mhim -o mining",
            "mhim mining runs/mhim -o mining --slides slide-1 --moment start --moment best",
        )
    )(mining)


def figure(
    slide: Annotated[str, typer.Option(help="Slide to draw.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, one row each.")] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--runs", help="Run folders separated by commas, instead of the arguments; NAME may be runs/NAME."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .png, .pdf or .svg. Default: figure_<slide>.png.")
    ] = None,
    maps: MapNames = None,
    dpi: Annotated[int, typer.Option(min=50, max=1200, help="Resolution of the pictures on paper.")] = 300,
    side_px: Annotated[int, typer.Option(min=128, max=8192, help="Longer side of the slide, pixels.")] = 1024,
    smooth: Smooth = False,
    cohort: Cohort = None,
    features: Features = None,
    with_baseline: WithBaseline = False,
    plugin: Plugin = None,
) -> None:
    """Draw one slide for print: attention, tile probability and contribution, one row a run, raw colour bars."""
    from mhim.config import validate
    from mhim.errors import ConfigError
    from mhim.maps import MapConfig, Study
    from mhim.maps.figure import write_figure

    load_plugins(plugin)
    values = {"cohort": cohort, "features": features, "maps": maps or None, "max_side_px": side_px, "smooth": smooth}
    config = validate(MapConfig, {key: value for key, value in values.items() if value is not None}, "figure")
    folders = [*(runs or []), *map(_run_folder, names_in(named) or [])]
    if not folders:
        raise ConfigError("name run folders: mhim figure runs/mhim --slide S, or --runs runs/abmil,runs/mhim")
    study = Study.of(open_runs(folders, with_baseline), config)
    out = out or Path(f"figure_{slide}.png")
    drawn = write_figure(out, study, study.chosen(config, [slide])[0], config, dpi)
    for notice in drawn.notices:
        console.print(f"note: {notice}", highlight=False, markup=False)
    console.print(f"wrote {out}", highlight=False)


def _run_folder(name: str) -> Path:
    """The folder of a run by its path, or by its name in ``runs``."""
    inside = Path("runs") / name
    return inside if not Path(name).is_dir() and inside.is_dir() else Path(name)


def sheet(
    runs: RunPaths,
    out: OutputDir,
    slides: Annotated[str | None, typer.Option(help="Slides, separated by commas. Default: every tested one.")] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles at each end.")] = 12,
    per_slide: Annotated[int, typer.Option(min=1, help="At most so many tiles of one slide at each end.")] = 3,
    cohort: Cohort = None,
    features: Features = None,
    with_baseline: WithBaseline = False,
    plugin: Plugin = None,
    dry_run: DryRun = False,
) -> None:
    """Write contact sheets: the tiles most and least probable of each class, as the encoder saw them."""
    from mhim.config import validate
    from mhim.maps import MapConfig, Study
    from mhim.maps.sheets import write_sheets

    load_plugins(plugin)
    values = {"cohort": cohort, "features": features}
    given = {key: value for key, value in values.items() if value is not None} | {"max_slides": None}
    config = validate(MapConfig, given, "sheet")
    study = Study.of(open_runs(runs, with_baseline), config)
    named = names_in(slides)
    chosen = study.chosen(config, named)
    if dry_run:
        what = f"{len(study.runs) * len(study.classes)} sheets of tiles from {len(chosen)} slides"
        console.print(f"would write {what} into {out}", highlight=False)
        return
    for path, count in write_sheets(study, out, chosen, tiles, per_slide).items():
        console.print(f"wrote {path} ({count} tiles)", highlight=False)


def mining(
    runs: RunPaths,
    out: OutputDir,
    slides: Annotated[str | None, typer.Option(help="Slides, separated by commas. Default: telling ones.")] = None,
    max_slides: Annotated[int, typer.Option(min=1, help="How many telling slides to draw when none are named.")] = 12,
    moments: Annotated[
        list[str] | None, typer.Option("--moment", help="start, middle, best or last. Repeatable. Default: all kept.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random part of the masks.")] = 0,
    cohort: Cohort = None,
    features: Features = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw what MHIM's teacher attends to and masks at the start, middle, best and last epoch.

    Every slide by the fold that tested it: the teacher never learned from it. What is complete is kept.
    """
    from mhim.config import validate
    from mhim.errors import ConfigError
    from mhim.maps import MapConfig, Study
    from mhim.maps.mining import draw_mining
    from mhim.training.snapshots import MOMENTS

    load_plugins(plugin)
    unknown = sorted(set(moments or ()) - set(MOMENTS))
    if unknown:
        raise ConfigError(f"--moment {unknown[0]}: expected one of {', '.join(MOMENTS)}")
    values = {"cohort": cohort, "features": features, "max_slides": max_slides}
    config = validate(MapConfig, {key: value for key, value in values.items() if value is not None}, "mining")
    opened = open_runs(runs, with_baseline=False)
    named = names_in(slides)
    if dry_run:
        chosen = Study.of(opened, config).chosen(config, named)
        console.print(f"would draw {len(chosen)} slides into {out}: {', '.join(chosen)}", highlight=False)
        return
    result = draw_mining(opened, out, config, named, moments, seed, overwrite)
    console.print(f"wrote {out}", highlight=False)
    finish(result)
