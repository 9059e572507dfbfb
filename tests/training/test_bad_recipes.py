"""Configurations that cannot work are refused before any data is read: the data named here does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhim.cli.learning import run_config
from mhim.config import merge, validate
from mhim.errors import CheckpointError, CohortError, ConfigError
from mhim.training.crossval import plan_run, require_baseline_recipe
from mhim.training.runs import RunConfig
from small_runs import SMALL_MODEL, small_plan, train_all

NOWHERE = {"cohort": "nowhere.csv", "features": "nowhere", "splits": "nowhere.csv"}


def attempt(**changes: Any) -> None:
    plan_run(validate(RunConfig, merge(NOWHERE, changes), "test"))


def mhim(**options: Any) -> dict[str, Any]:
    return {"method": {"name": "mhim-v1", **options}}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "high ratio of 1": (mhim(mask={"name": "ham", "mask_ratio_high": 1.0}), "mask_ratio_high"),
    "negative ratio": (mhim(mask={"name": "lr-ham", "mask_ratio_low": -0.1}), "mask_ratio_low"),
    "random ratio of 1": (mhim(mask={"name": "r-ham", "mask_ratio_random": 1}), "mask_ratio_random"),
    "nothing would be kept": (mhim(mask={"name": "l-ham", "mask_ratio_low": 0.98}), "nothing would be kept"),
    "candidates beyond the bag": (
        mhim(mask={"name": "ham", "mask_ratio_high": 0.6, "high_candidate_factor": 0.5}),
        "purely random",
    ),
    "factor of 0": (mhim(mask={"name": "ham", "high_candidate_factor": 0}), "high_candidate_factor"),
    "low ratio for HAM": (mhim(mask={"name": "ham", "mask_ratio_low": 0.2}), "mask_ratio_low"),
    "momentum above 1": (mhim(momentum=1.1), "momentum"),
    "negative consistency": (mhim(consistency_weight=-0.5), "consistency_weight"),
    "temperature of 0": (mhim(teacher_temperature=0), "teacher_temperature"),
    "unknown schedule": (mhim(momentum_schedule="linear"), "'constant' or 'cosine'"),
    "decay over no epoch": (mhim() | {"train": {"epochs": 0}}, "epochs"),
    "nothing to choose": (mhim() | {"train": {"epochs": 5, "choose_from": 5}}, "leaves none of 5 epochs"),
    "v1 with an option of v2": (mhim(keep_ratio=0.8), "unknown key 'keep_ratio'"),
    "keep ratio of 0": ({"method": {"name": "mhim-v2", "keep_ratio": 0}}, "keep_ratio"),
    "no tokens": ({"method": {"name": "mhim-v2", "recycle_tokens": 0}}, "recycle_tokens"),
    "unknown method": ({"method": "mhim-v3"}, "unknown method 'mhim-v3' (known: mhim-v1, mhim-v2, supervised)"),
    "unknown mask": (mhim(mask="top"), "unknown mask 'top'"),
    "a start without layers": (
        mhim() | {"model": {"name": "dsmil", "projection": "none"}},
        "DSMIL has no 'projection' layers to copy; set method.student_init",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_before_any_data_is_read(name: str) -> None:
    changes, message = CASES[name]
    with pytest.raises(ConfigError) as caught:
        attempt(**changes)
    assert message in str(caught.value)


def test_what_is_right_fails_at_the_data_alone() -> None:
    with pytest.raises(CohortError, match="nowhere"):
        attempt(method="mhim-v2")


def test_a_model_that_needs_more_than_the_trial_build_offers_is_not_refused() -> None:
    """Whether it fits is left to the data; here 30 heads do divide the width."""
    with pytest.raises(CohortError):
        attempt(model={"name": "transmil", "dim": 60, "heads": 30}, method="mhim-v1")


def test_later_layers_win(tmp_path: Path) -> None:
    """Preset, then file, then options, then --set."""
    file = tmp_path / "run.yaml"
    file.write_text("seed: 5\ntrain: {epochs: 7, patience: 3}\nmethod: {momentum: 0.5}\n")
    options: dict[str, Any] = {**NOWHERE, "train": {"epochs": 9}}
    config = run_config(file, options, ["train.patience=4"], ["iccv2023/abmil-camelyon16"])
    assert (config.seed, config.train.epochs, config.train.patience) == (5, 9, 4)
    assert config.method.model_dump()["momentum"] == 0.5
    assert config.method.model_dump()["mask"]["mask_ratio_random"] == 0.5
    assert config.train.min_epochs == 132


def test_a_baseline_of_another_recipe_is_refused_before_any_data_is_read(cohort_folder: Path, tmp_path: Path) -> None:
    plain = train_all(small_plan(cohort_folder, train={"epochs": 1}), tmp_path / "plain").path
    theirs = validate(RunConfig, merge(NOWHERE, {"model": SMALL_MODEL, "train": {"epochs": 1}}), "test")
    cases = {
        "the baseline was trained with model.name abmil, here transmil": {"model": "transmil"},
        "model.gated False, here True": {"model": {**SMALL_MODEL, "gated": True}},
        "train.epochs 1, here 2": {"train": {"epochs": 2}},
        "seed.value 0, here 3": {"seed": 3},
    }
    for message, changes in cases.items():
        values = merge({**NOWHERE, "model": SMALL_MODEL}, small_training(1), changes)
        with pytest.raises(ConfigError) as caught:
            require_baseline_recipe(plain, validate(RunConfig, values, "test"))
        assert message in str(caught.value)
    require_baseline_recipe(plain, validate(RunConfig, {**NOWHERE, "model": SMALL_MODEL, **small_training(1)}, "test"))
    with pytest.raises(CheckpointError, match="not a run folder"):
        require_baseline_recipe(tmp_path, theirs)


def small_training(epochs: int) -> dict[str, Any]:
    return {"train": {"epochs": epochs, "lr": 1e-3}}
