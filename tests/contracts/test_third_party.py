"""The docs' example of an aggregator of one's own, held to the laws by name as the docs say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_laws(plugin: Path) -> subprocess.CompletedProcess[str]:
    laws = ROOT / "tests" / "contracts" / "test_aggregator_laws.py"
    command = [sys.executable, "-m", "pytest", str(laws), "-p", "no:cacheprovider", "-k", "plain-mean"]
    return subprocess.run(
        [*command, "--mhim-plugin", str(plugin)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "models.register" in block]
    return code


def test_the_docs_example_keeps_the_laws(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(example())
    result = run_laws(plugin)
    assert result.returncode == 0, result.stdout
    assert re.search(r"\b[3-9]\d passed", result.stdout)


def test_a_wrong_claim_is_found(tmp_path):
    """Contributions that do not add up."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(example().replace("weight.T / count", "weight.T / (count + 1)"))
    result = run_laws(plugin)
    assert result.returncode == 1
    assert "test_contributions_add_up_to_the_logits" in result.stdout
