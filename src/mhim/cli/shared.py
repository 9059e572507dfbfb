"""What every verb shares: option types, one-line errors, plugins, the version."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from mhim.batch import BatchResult, console, print_result
from mhim.errors import MhimError

INTERRUPTED = 130
PIPE_WIDTH = 140

OutputDir = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one configuration key: --set key=value, --set part.key=value. Repeatable."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of configuration keys.")]
PresetOption = Annotated[
    list[str] | None, typer.Option("--preset", help="Published configuration by name, see mhim presets. Repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace outputs that were made by another configuration or input.")
]
Workers = Annotated[int, typer.Option("--workers", "-j", min=0, help="Worker processes; 0 works in this process.")]
Plugin = Annotated[
    list[Path] | None, typer.Option("--plugin", help="Python file that registers your own components. Repeatable.")
]


def examples(*lines: str) -> str:
    """Epilogue of a verb's help: its examples, one a paragraph."""
    return "\n\n".join(["[bold]Examples[/]", *(f"  {line}" for line in lines)])


def names_in(text: str | None) -> list[str] | None:
    """The names in a text that separates them by commas; None where nothing was given.

    >>> names_in("a, b,")
    ['a', 'b']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def load_plugins(paths: list[Path] | None) -> None:
    """Load the user's plugin files and installed plugins."""
    from mhim.registry import load_installed_plugins, load_plugin

    load_installed_plugins()
    for path in paths or ():
        load_plugin(path)


def finish(result: BatchResult, noun: str = "slide") -> None:
    """Print what became of a batch; exit with 1 when something failed."""
    print_result(result, noun)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _print_version(show: bool) -> None:
    if show:
        typer.echo(f"mhim {version('mhim')}")
        raise typer.Exit


def version_option(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Callback of the program itself."""


def run_app(app: typer.Typer) -> int:
    """Run the program; the exit code, with errors printed as one line."""
    try:
        return _run(app)
    except MhimError as error:
        _print_error(str(error))
        return 1
    except OSError as error:
        _print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; what is finished is kept, run the same command again to go on")
        return INTERRUPTED


def _print_error(text: str) -> None:
    from rich.markup import escape

    console.print(f"[bold red]error[/] {escape(' '.join(text.split()))}", highlight=False)


def _run(app: typer.Typer) -> int:
    """Run the program; typer turns Ctrl-C and usage errors into exit codes."""
    try:
        app(standalone_mode=True)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def say(text: str) -> None:
    """Print one line on standard error, as it is."""
    console.print(text, markup=False, highlight=False)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table of texts on standard output; intervals go on a line of their own in a narrow terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    output = Console()
    if not output.is_terminal:
        output.width = PIPE_WIDTH
    gap = " [" if output.width >= PIPE_WIDTH else "\n["
    table = Table(*(escape(text.replace(" [", gap)) for text in header))
    for row in rows:
        table.add_row(*(escape(text.replace(" [", gap)) for text in row))
    output.print(table)
