"""Verbs that bring features in and pack them: convert, repack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhim.cli.shared import DryRun, OutputDir, Overwrite, examples, finish, say


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
    app.command(
        epilog=examples(
            "mhim repack features -o packed   (then: mhim train ... --features packed)",
            "mhim repack clam/h5_files -o packed --encoder uni_v1 --mpp 0.5",
            "mhim repack features32 -o packed --precision float16 --dry-run",
        )
    )(repack)


Encoder = Annotated[str | None, typer.Option("--encoder", help="Encoder that made the features.")]
Mpp = Annotated[float | None, typer.Option("--mpp", help="Micrometres per pixel of the tiles.")]
SlideMpp = Annotated[float | None, typer.Option("--slide-mpp", help="Micrometres per level-0 pixel.")]
TileSize = Annotated[float | None, typer.Option("--tile-size-px0", help="Side of a tile, level-0 pixels.")]
CoordsUnit = Annotated[str | None, typer.Option("--coords-unit", help="px0 or um, for coordinates without a unit.")]


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
    encoder: Encoder = None,
    mpp: Mpp = None,
    slide_mpp: SlideMpp = None,
    tile_size_px0: TileSize = None,
    coords_unit: CoordsUnit = None,
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


def repack(
    source: Annotated[Path, typer.Argument(help="Folder of bags, or of another tool's per-slide files (h5, pt, npy).")],
    out: OutputDir,
    precision: Annotated[
        str | None, typer.Option(help="float16 or float32. Default: bags keep theirs, other files become float16.")
    ] = None,
    encoder: Encoder = None,
    mpp: Mpp = None,
    slide_mpp: SlideMpp = None,
    tile_size_px0: TileSize = None,
    coords_unit: CoordsUnit = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Pack bags for fast learning: features in one piece that is mapped into memory, with a digest and a checksum.

    OUT is a folder of bags: give it as --features to any verb. The numbers stay the same to the bit unless --precision
    changes them, and so do the runs that are trained on them. Run again, it packs what is new.
    """
    from mhim.config import validate
    from mhim.convert import ConvertConfig
    from mhim.repack import plan_repack
    from mhim.repack import repack as pack

    known = {
        "encoder": encoder,
        "mpp": mpp,
        "slide_mpp": slide_mpp,
        "tile_size_px0": tile_size_px0,
        "coords_unit": coords_unit,
        "precision": precision or "float16",
    }
    config = validate(ConvertConfig, known, "repack")
    plans = plan_repack(source, out, config, keep_precision=precision is None)
    todo = [plan for plan in plans if not plan.is_done]
    megabytes = sum(plan.source.stat().st_size for plan in todo) / 1e6
    if dry_run:
        say(f"would pack {len(todo)} of {len(plans)} files ({megabytes:.0f} MB) of {source} into {out}")
        return
    finish(pack(plans, config, precision is None, overwrite))
