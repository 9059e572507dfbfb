"""``mhim encoders``: every name users know with its facts, one encoder's options, and unknown names."""

import pytest
from typer.testing import CliRunner

from mhim.cli import app
from mhim.errors import MhimError

KNOWN = {
    "resnet50": ("1024", "256", "0.5", "224"),
    "uni_v1": ("1024", "256", "0.5", "224"),
    "uni_v2": ("1536", "256", "0.5", "224"),
    "conch_v1": ("512", "512", "0.5", "448"),
    "conch_v15": ("768", "512", "0.5", "448"),
    "virchow": ("2560", "224", "0.5", "224"),
    "virchow2": ("2560", "224", "0.5", "224"),
    "phikon": ("768", "224", "0.5", "224"),
    "phikon_v2": ("1024", "224", "0.5", "224"),
    "gigapath": ("1536", "256", "0.5", "224"),
    "hoptimus0": ("1536", "224", "0.5", "224"),
    "hoptimus1": ("1536", "224", "0.5", "224"),
    "midnight": ("3072", "224", "0.5", "224"),
    "ctranspath": ("768", "256", "1", "224"),
    "plip": ("512", "224", "0.5", "224"),
    "kaiko_vits8": ("384", "256", "0.5", "224"),
    "efficientnet-lite0": ("1280", "224", "0.5", "any"),
    "efficientnet-lite2": ("1280", "260", "0.5", "any"),
}
"""Width of the features, tile side and scale, and input side, as published; typed in by hand."""


def shown(*words: str) -> str:
    result = CliRunner().invoke(app, ["encoders", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_names_every_encoder_with_its_facts():
    rows = {line.split()[0]: line.split()[1:] for line in shown().splitlines() if line.strip()}
    assert {name: tuple(rows[name][:4]) for name in KNOWN} == KNOWN
    assert "gated" in rows["uni_v2"]
    assert "gated" not in rows["phikon"]
    assert {"timm:...", "onnx:..."} <= set(rows)


def test_one_encoder_says_where_its_weights_are_and_what_it_takes():
    text = " ".join(shown("uni_v2").split())
    assert "features: 1536" in text
    assert "256 px at 0.5 mpp" in text
    assert "https://huggingface.co/MahmoodLab/UNI2-h" in text
    assert "gated: ask for access" in text
    for option in ("backend", "precision", "calibration", "weights", "download"):
        assert f" {option} " in text


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(MhimError, match=r"unknown encoder 'nosuch' \(known: colour, .*virchow2"):
        CliRunner().invoke(app, ["encoders", "nosuch"], catch_exceptions=False)
