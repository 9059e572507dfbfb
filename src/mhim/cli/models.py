"""Verbs: the aggregators and their options; bringing published weights in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mhim.cli.shared import OutputDir, Overwrite, Plugin, examples, load_plugins

if TYPE_CHECKING:
    from mhim.models import MILModel

_IN_DIM, _CLASSES = 1024, 2
_PIPE_WIDTH = 140


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command("models", epilog=examples("mhim models", "mhim models transmil", "mhim models mine --plugin mine.py"))(
        list_models
    )
    app.command(
        "import-weights",
        epilog=examples("mhim import-weights fold_0_model_best_auc.pt -o weights/abmil --classes normal,tumor"),
    )(import_published)


def list_models(
    name: Annotated[str | None, typer.Argument(help="Show this model's options.")] = None, plugin: Plugin = None
) -> None:
    """List the aggregators, or one aggregator's options with defaults and ranges."""
    from mhim.models import models

    load_plugins(plugin)
    console = _output()
    if name is not None:
        _print_options(console, name, models[name])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column(f"parameters\n({_IN_DIM}-D, {_CLASSES} classes)", justify="right", no_wrap=True)
    table.add_column("paper")
    table.add_column("licence")
    for each in models:
        cls = models[each]
        table.add_row(each, f"{_parameters(each, {}):,}", cls.paper, cls.licence)
        for variant, options in cls.variants.items():
            table.add_row(f"  {variant}", f"{_parameters(each, options):,}", f"[dim]{_as_text(options)}[/]", "")
    console.print(table)


def import_published(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint, .pt or .safetensors.")],
    out: OutputDir,
    classes: Annotated[str | None, typer.Option("--classes", help="Class names in the order of the outputs.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring a published checkpoint in: recognised by its keys, loaded strictly, written as DIR/model.safetensors."""
    from mhim.weights import MODEL_FILE, import_weights

    names = [name.strip() for name in classes.split(",")] if classes else None
    found = import_weights(checkpoint, out, names, overwrite)
    _output().print(f"{found.describe()} -> {out / MODEL_FILE}", markup=False, highlight=False, soft_wrap=True)


def _output() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _parameters(name: str, options: Mapping[str, Any]) -> int:
    import torch

    from mhim.models import count_parameters, models

    with torch.random.fork_rng(devices=[]):
        return count_parameters(models.build(models.parse({"name": name, **options}), _IN_DIM, _CLASSES))


def _as_text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_plain(value)}" for key, value in options.items())


def _print_options(console: Console, name: str, cls: type[MILModel]) -> None:
    facts = {
        "paper": cls.paper,
        "licence": cls.licence,
        "parameters": f"{_parameters(name, {}):,} at {_IN_DIM}-D, {_CLASSES} classes, default options",
        "attention": "rows sum to 1" if cls.attention_is_normalised else "not normalised",
        "order of instances": "does not matter" if cls.is_permutation_equivariant else "matters",
        **{f"variant {variant}": _as_text(options) for variant, options in cls.variants.items()},
    }
    console.print(f"[bold]{name}[/]  {(cls.__doc__ or '').strip().splitlines()[0]}", highlight=False)
    for key, value in facts.items():
        console.print(f"  {key}: {value}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("option", "default", "allowed", "meaning"):
        table.add_column(column, no_wrap=column != "meaning")
    for key, schema in cls.Config.model_json_schema()["properties"].items():
        if key != "name":
            table.add_row(f"  {key}", _plain(schema.get("default")), allowed(schema), schema.get("description", ""))
    console.print(table)


def allowed(schema: Mapping[str, Any]) -> str:
    """The values that an option takes, from its JSON schema: choices, or a type with its range."""
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(_plain(value) for value in schema["enum"])
    kind = {"integer": "whole number", "number": "number", "boolean": "true, false", "null": "none", "string": "text"}
    text = kind.get(schema.get("type", ""), "any")
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if low == -math.inf and high == math.inf:
        return text
    left = "[" if "minimum" in schema else "("
    right = "]" if "maximum" in schema else ")"
    return f"{text} in {left}{_plain(low)}, {_plain(high)}{right}"


def _plain(value: Any) -> str:
    """A value as YAML writes it, and "none" for nothing."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
