from pathlib import Path

import pytest

from mhim.synth import SynthConfig, make_cohort

TINY = SynthConfig(
    n_slides=6,
    n_cases=5,
    width_um=700,
    height_um=560,
    focus_um2_min=2500,
    tumour_fraction_max=0.15,
    subtle_only_fraction=0.4,
)


@pytest.fixture(scope="session")
def tiny_config() -> SynthConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory, tiny_config: SynthConfig) -> Path:
    """A tiny cohort made in this process."""
    out = tmp_path_factory.mktemp("synth") / "cohort"
    result = make_cohort(out, tiny_config, workers=0)
    assert not result.failed
    assert len(result.done) == tiny_config.n_slides
    return out
