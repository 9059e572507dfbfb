"""Verbs that read slides: tile, encode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhim.cli.shared import (
    ConfigOption,
    DryRun,
    OutputDir,
    Overwrite,
    Plugin,
    SetOption,
    Workers,
    examples,
    finish,
    load_plugins,
    say,
)

if TYPE_CHECKING:
    from mhim.encode import EncodeConfig
    from mhim.resume import Standing
    from mhim.tiling import TileJob


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim tile cohort.csv -o tiles",
            "mhim tile slides/ -o tiles --target-mpp 1.0 --tile-px 224 --workers 4",
            "mhim tile scan.svs -o tiles --mpp 0.25   (for a slide without mpp in its metadata)",
            "mhim tile cohort.csv -o tiles --set tissue.threshold=8 --dry-run",
            "mhim tile slides/ -o tiles --tissue clam:bwh_biopsy   (CLAM's tissue and tiles, patch for patch)",
            "mhim tile slides/ -o tiles --tissue-mask outlines/    (SLIDE.geojson of QuPath, or SLIDE.png)",
        )
    )(tile)
    app.command(
        epilog=examples(
            "mhim encode tiles -o features",
            "mhim encode tiles -o features --encoder efficientnet-lite0 --precision bfloat16",
            "mhim encode tiles -o features --encoder colour --resample fast --workers 4",
            "mhim encode tiles -o features --device cuda:0,cuda:1 --batch-size 256",
            "mhim encode tiles -o features --shard 1/4   (one of four jobs that share the slides and the folder)",
            "mhim encode tiles -o features --plugin mine.py --encoder mine --set max_failed=0.01",
        )
    )(encode)


def tile(
    source: Annotated[Path, typer.Argument(help="Cohort table (CSV), folder of slides, or one slide.")],
    out: OutputDir,
    target_mpp: Annotated[float | None, typer.Option(help="Scale of the tiles, um per pixel. Default: 0.5.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Side of a tile, pixels. Default: 256.")] = None,
    stride_px: Annotated[int | None, typer.Option(help="Step between tiles, pixels. Default: the side.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Least share of tissue in a tile. Default: 0.25.")] = None,
    tissue: Annotated[
        str | None,
        typer.Option(help="stain, or CLAM's: clam:bwh_biopsy, clam:tcga, clam:FILE.csv ... Default: stain."),
    ] = None,
    tissue_mask: Annotated[
        Path | None, typer.Option(help="Tissue from outside: GeoJSON or image, or a folder of them by slide name.")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="mpp (exact scale), clam, trident. Default: auto.")] = None,
    patch_level: Annotated[
        int | None,
        typer.Option(help="Tiles are pixels of this pyramid level, as CLAM's. Default: 0 with --tissue clam."),
    ] = None,
    reject_ink: Annotated[
        bool | None, typer.Option("--reject-ink/--keep-ink", help="Leave out pen and dark edges. Default: yes.")
    ] = None,
    reject_blur: Annotated[
        bool | None, typer.Option("--reject-blur/--keep-blur", help="Leave out what is out of focus. Default: no.")
    ] = None,
    preview: Annotated[bool, typer.Option(help="Write pictures and the sheet of the cohort.")] = True,
    mpp: Annotated[float | None, typer.Option(help="Scale of slides that say none, in file or table, um/px.")] = None,
    force_scale: Annotated[
        bool,
        typer.Option("--force-scale", help="--mpp and table are right, whatever a file says; guesses are accepted."),
    ] = False,
    reader: Annotated[str, typer.Option(help="auto (by content), openslide, tiff or image.")] = "auto",
    workers: Workers = 2,
    config: ConfigOption = None,
    settings: SetOption = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Find tissue and plan tiles: one grid file and one preview picture per slide.

    Writes OUT/SLIDE.h5, OUT/previews/SLIDE.jpg, and OUT/previews/sheet.html, .csv and .jpg over all slides, which
    say which slides stand out, and why. Slides that are already complete are skipped.
    """
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.tiles import TileConfig, as_clam
    from mhim.tiling import slide_rows, tile_jobs, tile_slides

    flags = {
        "tiles": _given(
            mpp=target_mpp, size_px=tile_px, stride_px=stride_px, min_tissue=min_tissue, grid=grid, level=patch_level
        ),
        "tissue": _given(method=tissue, reject_ink=reject_ink, reject_blur=reject_blur),
    }
    values = as_clam(merge(read_yaml(config) if config else {}, flags, parse_overrides(settings or ())))
    chosen = validate(TileConfig, values, str(config or "mhim tile"))
    rows = slide_rows(source)
    if dry_run:
        jobs = tile_jobs(rows, out, chosen, mpp, overwrite, tissue_mask, preview, reader, force_scale)
        plans = ((job.row.slide_id, partial(_tile_plan, job)) for job in jobs)
        _print_plan(f"tile {len(jobs)} slides into {out}", plans, overwrite)
        return
    given = {"mpp0": mpp, "tissue_mask": tissue_mask, "preview": preview, "reader": reader, "force_scale": force_scale}
    finish(tile_slides(rows, out, chosen, workers=workers, overwrite=overwrite, **given))


def encode(
    tiles: Annotated[Path, typer.Argument(help="Folder of grid files that mhim tile wrote.")],
    out: OutputDir,
    encoder: Annotated[str | None, typer.Option(help="Encoder name. Default: efficientnet-lite0-mid.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Tiles encoded at once. Default: 64.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, torch, openvino or onnxruntime. Default: auto, torch in fp32.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or int8. Default: fp32, with --backend openvino bf16.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weight file of the encoder, or a folder that holds it.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the weights when they are not here.")] = False,
    resample: Annotated[
        str | None, typer.Option(help="parity (antialiased bicubic, as PIL) or fast. Default: parity.")
    ] = None,
    reader: Annotated[str | None, typer.Option(help="auto, openslide, tiff or image. Default: auto.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, mps, or several: cuda:0,cuda:1. Default: auto.")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th slide from the i-th, for n jobs at once.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-j", min=0, help="Threads that read tiles; 0: none beside the encoder. Default: cores."
        ),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn tiles into features: one bag file per slide.

    Writes OUT/SLIDE.h5 with features (N, D) and coords (N, 2). Slides that are already complete are skipped; one
    that was interrupted goes on after its last whole chunk of 512 tiles. Tiles that cannot be read are left out
    and listed in the file.
    """
    from mhim.config import merge, parse_overrides, read_yaml, validate
    from mhim.encode import EncodeConfig, encode_grids, parse_shard

    load_plugins(plugin)
    part = parse_shard(shard) if shard else None
    made = _given(name=encoder, backend=backend, precision=precision, weights=weights, download=download or None)
    flags = _given(encoder=made, batch_size=batch_size, device=device)
    flags |= _given(resample=resample, reader=reader)
    layers = [{"encoder": "efficientnet-lite0-mid"}, read_yaml(config) if config else {}, flags]
    values = merge(*map(_named_encoder, [*layers, parse_overrides(settings or ())]))
    chosen = validate(EncodeConfig, values, str(config or "mhim encode"))
    if dry_run:
        _print_encode_plan(tiles, out, chosen, overwrite, part)
        return
    result = encode_grids(tiles, out, chosen, workers, overwrite, part)
    for note in result.notes():
        say(note)
    finish(result)


def _given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in values.items() if value is not None}


def _named_encoder(values: dict[str, Any]) -> dict[str, Any]:
    """``encoder: name`` written out as ``encoder: {name: name}``, so that options of layers merge."""
    encoder = values.get("encoder")
    return {**values, "encoder": {"name": encoder}} if isinstance(encoder, str) else values


def _tile_plan(job: TileJob) -> tuple[Standing, str]:
    from mhim.config import fingerprint
    from mhim.resume import standing
    from mhim.tiles import refuse_upsampling

    with job.open() as slide:
        refuse_upsampling(slide.mpp0, job.config.tiles, slide.slide_id)
        return standing(job.path, fingerprint(job.config), job.input_fingerprint(slide))


def _print_encode_plan(
    tiles: Path, out: Path, config: EncodeConfig, overwrite: bool, shard: tuple[int, int] | None
) -> None:
    from mhim.encode import EncodeJob, build_encoder, encode_jobs
    from mhim.resume import standing

    jobs, encoder = encode_jobs(tiles, out, overwrite, shard), build_encoder(config)
    title = f"encode {len(jobs)} slides into {out}: {encoder.name}, {encoder.dim} features, {encoder.device}"

    def plan(job: EncodeJob) -> tuple[Standing, str]:
        return standing(job.path, config.fingerprint(encoder), job.input_fingerprint())

    _print_plan(title, ((job.slide_id, partial(plan, job)) for job in jobs), overwrite)


def _print_plan(title: str, rows: Iterable[tuple[str, Callable[[], tuple[Standing, str]]]], overwrite: bool) -> None:
    """Print what would become of each slide."""
    from rich.markup import escape
    from rich.table import Table

    from mhim.batch import console
    from mhim.errors import MhimError

    table = Table(title=escape(f"would {title}"), title_justify="left")
    table.add_column("slide", overflow="fold")
    table.add_column("what", overflow="fold")
    for name, plan in rows:
        try:
            found, difference = plan()
            replaced = f"{difference}: {'would be replaced' if overwrite else 'would fail, see --overwrite'}"
            table.add_row(escape(name), escape(replaced if difference else found.value))
        except MhimError as error:
            table.add_row(escape(name), escape(f"would fail: {error}"))
    console.print(table)
