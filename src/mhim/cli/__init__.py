"""The command ``mhim``. Heavy imports wait inside the verbs, so that ``--help`` is instant."""

from __future__ import annotations

import sys

import typer

from mhim.cli import (
    ablation,
    bench,
    comparison,
    demo,
    doctor,
    encoders,
    exports,
    figures,
    info,
    learning,
    models,
    papers,
    presets,
    results,
    slides,
    synthetic,
    tables,
)
from mhim.cli.shared import version_option

app = typer.Typer(
    name="mhim",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Learn from whole-slide images with slide-level labels only.\n\n"
    "slides -> [bold]tile[/] -> [bold]encode[/] -> [bold]split[/] -> [bold]train[/] -> "
    "[bold]evaluate[/] -> [bold]heatmap[/] -> [bold]report[/]",
)
app.callback()(version_option)
VERBS = (
    demo,
    slides,
    encoders,
    tables,
    models,
    presets,
    doctor,
    learning,
    ablation,
    comparison,
    bench,
    papers,
    results,
    exports,
    figures,
    info,
    synthetic,
)
for module in VERBS:
    module.add_to(app)


def main() -> None:
    """Entry point: errors become one line, Ctrl-C says how to go on."""
    from mhim.cli.shared import run_app

    sys.exit(run_app(app))
