"""One thread for the small networks here: faster on a busy machine than two that wait for each other."""

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Converted graphs and measured deviations go to a folder of this run, not to the user's cache."""
    before = os.environ.get("MHIM_CACHE")
    os.environ["MHIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["MHIM_CACHE"]
    else:
        os.environ["MHIM_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
