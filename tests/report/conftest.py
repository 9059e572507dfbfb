"""The study that the tests of maps use, finished once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mhim.maps import MapConfig, draw_maps
from mhim.training.runs import Run, open_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "maps"))


@pytest.fixture(scope="session")
def study_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_study import make_study

    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def runs(study_run: Path) -> list[Run]:
    """Baseline and MHIM."""
    return [open_run(study_run / "baseline"), open_run(study_run)]


@pytest.fixture(scope="session")
def maps(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of all slides by both runs, as ``mhim heatmap`` writes them."""
    folder = tmp_path_factory.mktemp("maps")
    draw_maps(runs, folder, MapConfig.model_validate({"max_side_px": 288}))
    return folder
