"""Verbs: tables."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
