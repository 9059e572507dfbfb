"""Verb that says what a file is: info."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mhim.cli.shared import examples


def add_to(app: typer.Typer) -> None:
    """Add the verb of this module to the program."""
    app.command(
        epilog=examples(
            "mhim info features/slide_1.h5",
            "mhim info features   (what the bags of a folder have in common, and what is unfinished)",
            "mhim info runs/mhim --json",
        )
    )(info)


def info(
    path: Annotated[Path, typer.Argument(help="Bag, grid, model, run folder, or a folder of bags or grids.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file or folder is and how it was made.

    Bags: shape, scale, encoder, reader, and the tiles that could not be read. Runs: folds, metrics. Nothing is written.
    """
    import json

    from mhim.inspection import describe

    facts = describe(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    for line in _lines(facts):
        typer.echo(line)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    state = "" if facts.get("complete", True) else ", not complete"
    yield f"{facts['path']}: {facts['kind']}{state}"
    for key, value in facts.items():
        if key not in ("path", "kind", "complete", "datasets", "attributes", "failed", "metrics"):
            yield from _row(key, value)
    for name, entry in facts.get("datasets", {}).items():
        chunk = f", chunks of {entry['chunk'][0]} rows" if entry["chunk"] else ""
        yield f"  {name:24} {' x '.join(map(str, entry['shape'])) or 'one'} {entry['dtype']}{chunk}"
    for key, value in sorted(facts.get("attributes", {}).items()):
        yield from _row(key, value)
    for name, entry in facts.get("metrics", {}).items():
        yield from _row(name, f"{entry.get('value')}  (mean over folds)")
    for entry in facts.get("failed", ()):
        yield f"  failed at {tuple(entry['xy_px0'])}: {entry['reason']}"


def _row(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and not value or value == []:
        return
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {count}" for name, count in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    yield f"  {key:24} {value}"
