"""One trained study for all tests of maps."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_study import make_study

from mhim.training.runs import Run, open_run


@pytest.fixture(scope="session")
def study_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def runs(study_run: Path) -> list[Run]:
    """Baseline and MHIM."""
    return [open_run(study_run / "baseline"), open_run(study_run)]
