"""Verb that hands maps to other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhim.batch import console
from mhim.cli.results import RunPaths, WithBaseline, open_runs
from mhim.cli.shared import (
    ConfigOption,
    DryRun,
    OutputDir,
    Overwrite,
    Plugin,
    SetOption,
    examples,
    finish,
    load_plugins,
    names_in,
)


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim export runs/mhim -o exports",
            "mhim export runs/mhim --with-baseline -o exports --slides slide-1 --format geojson --format ome-tiff",
            "mhim export runs/mhim -o exports --set region_map=contribution --set region_share=0.02",
            "mhim export runs/mhim -o exports --features new/features --fold 0",
        )
    )(export)


def export(
    runs: RunPaths,
    out: OutputDir,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="geojson, ome-tiff, csv, parquet or anndata. Repeatable. Default: the first three."
        ),
    ] = None,
    slides: Annotated[str | None, typer.Option(help="Slides, separated by commas. Default: every tested one.")] = None,
    origin: Annotated[
        str | None, typer.Option(help="auto (as QuPath shows the slide), level0 or bounds. Default: auto.")
    ] = None,
    cohort: Annotated[Path | None, typer.Option(help="Cohort table with slides. Default: the run's.")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of bag files. Default: the run's.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Export slides of --features that the run does not know, by this fold.")
    ] = None,
    with_baseline: WithBaseline = False,
    config: ConfigOption = None,
    settings: SetOption = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the maps for other programs: QuPath GeoJSON, pyramidal OME-TIFF, CSV, Parquet, AnnData.

    Values are raw, coordinates level-0 pixels. GeoJSON and OME-TIFF count from the corner that QuPath shows:
    for slides that record their scanned area (MRXS, SCN) that is its corner, see --origin.
    """
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.exports import ExportConfig, export_maps
    from mhim.exports.write import chosen_slides, study_of

    load_plugins(plugin)
    values = {"formats": formats or None, "origin": origin, "cohort": cohort, "features": features, "fold": fold}
    given = {key: value for key, value in values.items() if value is not None}
    layers = merge(read_yaml(config) if config else {}, given, parse_overrides(settings or ()))
    options = validate(ExportConfig, layers, "export")
    opened = open_runs(runs, with_baseline)
    named = names_in(slides)
    if dry_run:
        chosen = chosen_slides(study_of(opened, options), named)
        console.print(f"would export {len(chosen)} slides into {out}: {', '.join(chosen)}", highlight=False)
        return
    result = export_maps(opened, out, options, named, overwrite)
    console.print(f"wrote {out}", highlight=False)
    finish(result)
