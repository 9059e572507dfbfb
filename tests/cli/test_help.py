"""Help: every verb shows examples, and nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import typer.main

from mhim.cli import app

HEAVY = {"torch", "sklearn", "scipy", "pandas", "matplotlib", "openslide", "cv2", "h5py"}
VERBS = sorted(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]

SHOW = """
import contextlib, io, json, sys
from mhim.cli import app
shown = {}
for verb in [None, *json.loads(sys.argv[1])]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        app([verb, "--help"] if verb else ["--help"])
    shown[verb or ""] = [text.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]
print(json.dumps(shown))
"""


@cache
def shown() -> dict[str, Any]:
    """Help text and imported packages per verb, from a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, json.dumps(VERBS)],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100", "TERM": "dumb", "PATH": ""},
    )
    return json.loads(done.stdout)


def test_the_verbs_of_the_main_job_are_there() -> None:
    assert {"tile", "encode", "split", "train", "evaluate", "heatmap", "report", "demo"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_of_the_verb(verb: str) -> None:
    text, _ = shown()[verb]
    _, found, examples = text.partition("Examples")
    assert found
    assert f"mhim {verb}" in examples
    assert "[bold]" not in text


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    _, packages = shown()[verb]
    assert "mhim" in packages
    assert not HEAVY & set(packages)


@pytest.mark.parametrize("verb", VERBS)
def test_the_program_lists_the_verb(verb: str) -> None:
    assert f" {verb} " in shown()[""][0]


def test_the_version_is_that_of_the_package() -> None:
    ran = subprocess.run([sys.executable, "-m", "mhim", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"mhim {version('mhim')}\n"
