"""Verb: the encoders, their facts and their options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhim.cli.shared import Plugin, examples, load_plugins

if TYPE_CHECKING:
    from mhim.encoders import Encoder


def add_to(app: typer.Typer) -> None:
    """Add the verb of this module to the program."""
    app.command(
        "encoders",
        epilog=examples(
            "mhim encoders",
            "mhim encoders uni_v2",
            "mhim encode tiles -o features --encoder uni_v2 --weights UNI2-h/pytorch_model.bin",
            "mhim encode tiles -o features --encoder phikon --download --backend openvino",
        ),
    )(list_encoders)


def list_encoders(
    name: Annotated[str | None, typer.Argument(help="Show this encoder's facts and options.")] = None,
    plugin: Plugin = None,
) -> None:
    """List the encoders, or one encoder's facts and options.

    Names with a colon stand for a family: timm:NAME is any model of timm, onnx:FILE any ONNX file. Nothing is
    fetched and no weights are read.
    """
    from rich.console import Console
    from rich.table import Table

    from mhim.cli.shared import PIPE_WIDTH
    from mhim.encoders import encoders

    load_plugins(plugin)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if name is not None:
        _print_one(console, name, encoders[name])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, right in (("encoder", 0), ("D", 1), ("tile px", 1), ("mpp", 1), ("input", 1), ("access", 0)):
        table.add_column(header, no_wrap=True, justify="right" if right else "left")
    table.add_column("licence of the weights")
    for each in encoders:
        table.add_row(each, *_row(encoders[each]))
    for prefix, cls in encoders.families.items():
        table.add_row(f"{prefix}:...", "", "", "", "", "", (cls.__doc__ or "").strip().splitlines()[0])
    console.print(table, highlight=False)


def _row(cls: type[Encoder]) -> Iterator[str]:
    from mhim.encoders.cards import CARDS

    card = CARDS.get(getattr(getattr(cls, "card", None), "name", ""))
    yield str(getattr(cls, "dim", "") or "")
    yield str(cls.tile_px) if hasattr(cls, "dim") else ""
    yield f"{cls.mpp:g}" if hasattr(cls, "dim") else ""
    yield str(getattr(cls, "input_px", None) or "any") if hasattr(cls, "dim") else ""
    if card is None:
        has_file = "weights" in cls.Config.model_fields
        yield "your file" if has_file else "package" if cls.licence else "no weights"
    else:
        yield "hub, gated" if card.gated else "hub" if card.hub else "authors' file"
    yield cls.licence


def _print_one(console: Any, name: str, cls: type[Encoder]) -> None:
    from rich.table import Table

    from mhim.cli.models import allowed

    console.print(f"{name}  {(cls.__doc__ or '').strip().splitlines()[0]}", markup=False, highlight=False)
    for key, value in _facts(cls).items():
        if value:
            console.print(f"  {key}: {value}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("option", "default", "allowed", "meaning"):
        table.add_column(column, no_wrap=column == "option")
    for key, schema in cls.Config.model_json_schema()["properties"].items():
        if key != "name":
            default = schema.get("default")
            shown = "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
            table.add_row(f"  {key}", shown, allowed(schema), schema.get("description", ""))
    console.print(table, highlight=False)


def _facts(cls: type[Encoder]) -> dict[str, object]:
    from mhim.encoders.published import describe

    card = getattr(cls, "card", None)
    if card is None:
        size = {"features": cls.dim, "tile": f"{cls.tile_px} px at {cls.mpp:g} mpp"} if hasattr(cls, "dim") else {}
        return {**size, "transform": cls.transform, "licence of the weights": cls.licence}
    access = "gated: ask for access on its page, then log in with 'hf auth login'" if card.gated else "open"
    return {
        "features": card.dim,
        "tile": f"{card.tile_px} px at {card.mpp:g} mpp",
        "transform": describe(card.input_px, card.fit, card.filter, *card.normalisation),
        "licence of the weights": card.licence,
        "weights": f"https://huggingface.co/{card.hub} ({card.files[0]})" if card.hub else card.files[0],
        "access": access if card.hub else "from the authors",
        "environment variable": card.variable,
        "paper": card.paper,
        "note": card.note,
    }
