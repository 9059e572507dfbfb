"""``mhim models``: the list and one model's options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mhim.cli import app
from mhim.cli.models import allowed
from mhim.errors import ConfigError
from mhim.models import models

COUNTS = {
    "abmil": "591,490",
    "gated": "657,026",
    "clam-mb": "791,048",
    "clam-sb": "790,791",
    "dsmil": "873,734",
    "dtfd": "789,254",
    "transmil": "2,672,146",
    "max": "525,826",
    "mean": "525,826",
}
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_list_has_every_model_with_its_count():
    text = run()
    for name, count in COUNTS.items():
        assert re.search(rf"^\s*{name}\s+{count}\s", text, re.MULTILINE), name
    assert all(re.search(rf"^{name}\s", text, re.MULTILINE) for name in models)


@pytest.mark.parametrize("name", list(models))
def test_one_model_has_every_option_with_default_and_description(name):
    text = run(name)
    for key, field in models[name].Config.model_fields.items():
        if key == "name":
            continue
        row = re.search(rf"^\s*{key}\s+(.+)$", text, re.MULTILINE)
        assert row, key
        assert row[1].split()[0] in (str(field.default).lower(), f"{field.default}", "none", "0"), key
        assert field.description.split()[0] in row[1], key


def test_a_name_that_is_unknown():
    with pytest.raises(ConfigError, match="unknown model 'resnet' .known: abmil"):
        run("resnet")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1}, "whole number in [1, inf)"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number in [0, 1)"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number in (0, 1]"),
        ({"enum": ["a", "b"], "type": "string"}, "a, b"),
        ({"type": "boolean"}, "true, false"),
        ({"type": "string"}, "text"),
        ({"anyOf": [{"type": "integer", "minimum": 2}, {"type": "null"}]}, "whole number in [2, inf) or none"),
    ],
)
def test_ranges_in_words(schema, text):
    assert allowed(schema) == text


def test_every_model_is_in_the_docs_with_its_count():
    text = DOCS.read_text()
    built_in = [name for name in models if models[name].__module__.startswith("mhim.")]
    assert [name for name in built_in if f"`{name}`" not in text] == []
    assert [count for count in COUNTS.values() if count not in text] == []
