"""What several test files share: the folder of shared facts, small bags, small cohorts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohort_files import write_cohort

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of reference numbers and real data beside the checkout")
    return SHARED


@pytest.fixture
def cohort_folder(tmp_path: Path) -> Path:
    """A folder with cohort.csv and features/ of 24 cases."""
    write_cohort(tmp_path)
    return tmp_path
