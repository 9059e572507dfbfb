from typer.testing import CliRunner

from mhim.cli import app
from mhim.cohort import read_cohort
from mhim.errors import ConfigError

SMALL = ["--slides=3", "--cases=3", "--workers=0", "--set=width_um=500", "--set=height_um=500"]
COARSE = ["--set=mpp_a=2", "--set=mpp_b=1.84", "--set=focus_um2_min=1500"]


def run(*arguments):
    return CliRunner().invoke(app, ["synth", *arguments])


def test_help_shows_examples():
    result = run("--help")
    assert result.exit_code == 0
    assert "mhim synth -o data/synth" in result.output


def test_dry_run_writes_nothing_then_a_run_makes_the_cohort(tmp_path):
    out = tmp_path / "cohort"
    assert run("-o", str(out), *SMALL, *COARSE, "--dry-run").exit_code == 0
    assert not out.exists()
    assert run("-o", str(out), *SMALL, *COARSE).exit_code == 0
    assert len(read_cohort(out / "cohort.csv")) == 3


def test_options_override_the_file(tmp_path):
    file = tmp_path / "synth.yaml"
    file.write_text("n_slides: 9\nn_cases: 3\nwidth_um: 500\nheight_um: 500\n")
    assert run("-o", str(tmp_path / "out"), "-c", str(file), "--slides=3", "--workers=0", *COARSE).exit_code == 0
    assert len(read_cohort(tmp_path / "out" / "cohort.csv")) == 3


def test_a_bad_key_is_one_line(tmp_path):
    result = run("-o", str(tmp_path), "--set", "seeed=3")
    assert isinstance(result.exception, ConfigError)
    assert "unknown key 'seeed'" in str(result.exception)
    assert "\n" not in str(result.exception)
