"""Verbs that show results: heatmap, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mhim.batch import console
from mhim.cli.shared import DryRun, OutputDir, Overwrite, Plugin, examples, finish, load_plugins, names_in

if TYPE_CHECKING:
    from mhim.training.runs import Run

RunPaths = Annotated[list[Path], typer.Argument(help="Run folders; the first is what others are compared with.")]
WithBaseline = Annotated[bool, typer.Option("--with-baseline", help="Put RUN/baseline of a two-stage run before it.")]

MapNames = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="attention, attention-score (before the softmax), probability or contribution. Repeatable. Default: all "
        "but attention-score.",
    ),
]

Smooth = Annotated[bool, typer.Option("--smooth", help="Interpolate colours between tile centres; tables stay raw.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim heatmap runs/mhim -o maps",
            "mhim heatmap runs/mhim --with-baseline -o maps --all-slides",
            "mhim heatmap runs/mhim -o maps --slides slide-1,slide-2 --map attention --side-px 3000 --smooth",
            "mhim heatmap runs/mhim -o maps --features new/features --fold 0",
        )
    )(heatmap)
    app.command(
        epilog=examples(
            "mhim report runs/mhim -o report.html",
            "mhim report runs/mhim --with-baseline -o report.html --maps maps",
        )
    )(report)


def heatmap(
    runs: RunPaths,
    out: OutputDir,
    cohort: Annotated[Path | None, typer.Option(help="Cohort table with slides. Default: the run's.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files. Default: the run's.")] = None,
    slides: Annotated[str | None, typer.Option(help="Slides to draw, separated by commas.")] = None,
    maps: MapNames = None,
    max_slides: Annotated[int, typer.Option(min=1, help="How many telling slides to draw when none are named.")] = 24,
    all_slides: Annotated[bool, typer.Option("--all-slides", help="Draw every tested slide.")] = False,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Draw the slides of --features that the run does not know, by this fold.")
    ] = None,
    smooth: Smooth = False,
    side_px: Annotated[
        int, typer.Option(min=128, max=16384, help="Longer side of the slide in a picture, pixels.")
    ] = 768,
    opacity: Annotated[float, typer.Option(min=0.01, max=1, help="Opacity of the highest value.")] = 0.85,
    with_baseline: WithBaseline = False,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw attention, tile probability and contribution over the slides, each by the fold that tested it.

    Without --slides or --all-slides: the wrong, the least certain and the most certain slides of the
    last run. Slides that the run does not know are drawn with --fold, by that fold's model. Two or more
    runs share scales and a panel. Where tiles have truth, OUT/localisation.csv scores the maps on every slide.
    """
    from mhim.config import validate
    from mhim.maps import MapConfig, Study, draw_maps

    load_plugins(plugin)
    values = {"cohort": cohort, "features": features, "maps": maps or None, "fold": fold, "smooth": smooth}
    values |= {"max_side_px": side_px, "opacity": opacity}
    given = {key: value for key, value in values.items() if value is not None}
    config = validate(MapConfig, given | {"max_slides": None if all_slides else max_slides}, "heatmap")
    opened = open_runs(runs, with_baseline)
    named = names_in(slides)
    if dry_run:
        chosen = Study.of(opened, config).chosen(config, named)
        console.print(f"would draw {len(chosen)} slides into {out}: {', '.join(chosen)}", highlight=False)
        return
    result = draw_maps(opened, out, config, named, overwrite)
    console.print(f"wrote {out}", highlight=False)
    finish(result)


def report(
    runs: RunPaths,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    maps: Annotated[
        Path | None, typer.Option(help="Folder that 'mhim heatmap' wrote. Default: draw what is shown.")
    ] = None,
    slides: Annotated[int, typer.Option(min=0, help="Slides whose maps are shown.")] = 12,
    tiles: Annotated[
        int,
        typer.Option(min=0, max=24, help="Tiles shown below each of them, by probability and by attention."),
    ] = 6,
    title: Annotated[str | None, typer.Option(help="Heading. Default: the classes.")] = None,
    date: Annotated[str | None, typer.Option(help="Date to print. Default: none.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    with_baseline: WithBaseline = False,
    plugin: Plugin = None,
    dry_run: DryRun = False,
) -> None:
    """Write one self-contained HTML page about runs: results, curves, maps, slides, how to reproduce.

    It opens offline and asks for nothing from outside; equal input gives equal bytes.
    """
    from mhim.config import validate
    from mhim.report import ReportConfig, write_report

    load_plugins(plugin)
    values = {"title": title, "date": date, "slides": slides, "tiles": tiles, "resamples": resamples}
    config = validate(ReportConfig, values, "report")
    opened = open_runs(runs, with_baseline)
    if dry_run:
        console.print(f"would write {out} about {len(opened)} runs", highlight=False)
        return
    write_report(opened, out, config, maps)
    console.print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)", highlight=False)


def open_runs(paths: list[Path], with_baseline: bool) -> list[Run]:
    """The runs in some folders, each once, with the baseline of a two-stage run before it where asked.

    Raises:
        ArtefactError: not a complete run folder, or no baseline inside any of them.
    """
    from mhim.errors import ArtefactError
    from mhim.training.runs import open_run

    wanted: list[Path] = []
    for path in paths:
        inside = path / "baseline"
        wanted += [inside, path] if with_baseline and (inside / "run.json").is_file() else [path]
    if with_baseline and len(wanted) == len(paths):
        raise ArtefactError(f"{paths[0]}: no baseline in it; name the baseline's own run folder instead")
    return [open_run(path) for path in dict.fromkeys(wanted)]
