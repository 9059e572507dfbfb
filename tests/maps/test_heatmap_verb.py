"""The verb heatmap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mhim.cli import app
from mhim.cli.results import open_runs
from mhim.errors import ArtefactError, ConfigError


def test_heatmap_draws_named_slides_with_the_baseline(study_run: Path, tmp_path: Path):
    words = ["heatmap", str(study_run), "--with-baseline", "-o", str(tmp_path), "--slides", "s03, s04"]
    result = CliRunner().invoke(app, [*words, "--map", "attention"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["froc.csv", "localisation.csv", "s03", "s04"]
    assert (tmp_path / "s03" / "abmil_attention.png").is_file()
    assert not (tmp_path / "s03" / "abmil_probability.png").exists()


def test_dry_run_writes_nothing(study_run: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["heatmap", str(study_run), "-o", str(tmp_path / "maps"), "--dry-run"])
    assert result.exit_code == 0
    assert not (tmp_path / "maps").exists()


def test_failures_end_with_exit_code_1(study_run: Path, tmp_path: Path):
    words = ["heatmap", str(study_run), "-o", str(tmp_path), "--slides", "s03"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--map", "probability"]).exit_code == 1


def test_unknown_map_and_missing_baseline_are_one_line(study_run: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["heatmap", str(study_run), "-o", str(tmp_path), "--map", "saliency"])
    assert isinstance(result.exception, ConfigError)
    assert "'attention', 'attention-score', 'probability' or 'contribution'" in str(result.exception)
    with pytest.raises(ArtefactError, match="no baseline in it"):
        open_runs([study_run / "baseline"], with_baseline=True)


@pytest.mark.parametrize("verb", ["heatmap", "report"])
def test_help_is_quick(verb: str):
    """No torch, no matplotlib behind --help."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom mhim.cli import app\n"
        f"result = CliRunner().invoke(app, ['{verb}', '--help'])\n"
        "assert result.exit_code == 0 and 'Examples' in result.output\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
