"""Verb that brings foreign features in: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhim.cli.shared import DryRun, OutputDir, Overwrite, examples, finish


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim convert trident/features_uni_v1 -o features --encoder uni_v1 --mpp 0.5",
            "mhim convert features.npz --bags bags.csv --instances patches.csv -o data "
            "--bag-id patient_id --label bag_label --rows patch_indices --where task=presence_w20 "
            "--x x --y y --truth idc_label --fold fold",
        )
    )(convert)


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of per-slide files (h5, pt, npy), or a feature matrix.")],
    out: OutputDir,
    bags: Annotated[Path | None, typer.Option(help="With a matrix: CSV, one row per bag.")] = None,
    instances: Annotated[Path | None, typer.Option(help="With a matrix: CSV, one row per matrix row.")] = None,
    bag_id: Annotated[str, typer.Option(help="Bag column: name of the bag.")] = "slide_id",
    case_id: Annotated[str | None, typer.Option(help="Bag column: owner. Default: the bag itself.")] = None,
    label: Annotated[str, typer.Option(help="Bag column: label.")] = "label",
    rows: Annotated[str, typer.Option(help="Bag column: row numbers of the matrix.")] = "rows",
    fold: Annotated[str | None, typer.Option(help="Bag column: test fold.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Use bags with column=value. Repeatable.")] = None,
    x: Annotated[str | None, typer.Option(help="Instance column: left edge, level-0 pixels.")] = None,
    y: Annotated[str | None, typer.Option(help="Instance column: top edge, level-0 pixels.")] = None,
    truth: Annotated[str | None, typer.Option(help="Instance column: 1 inside the annotation.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder that made the features.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the tiles.")] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="Micrometres per level-0 pixel.")] = None,
    tile_size_px0: Annotated[float | None, typer.Option(help="Side of a tile, level-0 pixels.")] = None,
    coords_unit: Annotated[str | None, typer.Option(help="px0 or um, for coordinates without a unit.")] = None,
    precision: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Bring features of other tools into bag files.

    A folder of per-slide files (CLAM, TRIDENT, STAMP, AtlasPatch, plain tensors) gives one bag each. A feature
    matrix with a bag table gives OUT/features and OUT/cohort.csv.
    """
    from mhim.config import validate
    from mhim.convert import ConvertConfig, TableConfig, convert_folder, convert_tables
    from mhim.errors import ConfigError

    known = {
        "encoder": encoder,
        "mpp": mpp,
        "slide_mpp": slide_mpp,
        "tile_size_px0": tile_size_px0,
        "coords_unit": coords_unit,
        "precision": precision,
    }
    config = validate(ConvertConfig, known, "convert")
    if dry_run:
        typer.echo(f"would convert {source} to {out / 'features' if bags else out}")
        return
    if bags is None:
        finish(convert_folder(source, out, config, overwrite))
        return
    pairs = [text.partition("=") for text in where or ()]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError("--where takes column=value")
    names = {"bag_id": bag_id, "case_id": case_id, "label": label, "rows": rows, "fold": fold}
    facts = {"x": x, "y": y, "truth": truth, "where": {key: value for key, _, value in pairs}}
    columns = validate(TableConfig, names | facts, "convert")
    finish(convert_tables(source, bags, instances, out, columns, config, overwrite), "bag")
