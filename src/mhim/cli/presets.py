"""Verb about published configurations: presets."""

from __future__ import annotations

from typing import Annotated

import typer

from mhim.cli.shared import examples, print_table


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command(
        epilog=examples(
            "mhim presets",
            "mhim presets iccv2023/transmil-camelyon16",
            "mhim train ... --preset iccv2023/abmil-tcga --preset ablation/init-only -o runs/init-only",
        )
    )(presets)


def presets(name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None) -> None:
    """List the published configurations and the changes that can be laid over them, with their sources."""
    from mhim import presets as known

    if name is not None:
        typer.echo(known.read_preset(name).path.read_text(encoding="utf-8"), nl=False)
        return
    rows = [
        [each.name, each.file.title, "change" if each.file.is_change else "whole", each.file.source]
        for each in known.presets()
    ]
    print_table(["preset", "what", "kind", "source"], rows)
