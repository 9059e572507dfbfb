"""Presets: every file validates, and says what section 4.7, 4.8 and 6.4 of the published tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.config import merge, validate
from mhim.errors import ConfigError
from mhim.presets import FOLDER, preset_names, preset_values, presets, read_preset
from mhim.training.crossval import check_recipe
from mhim.training.runs import ASIDE, RunConfig, open_run
from small_runs import split_cohort

DATA = {"cohort": "cohort.csv", "features": "features", "splits": "splits.csv"}
BASES = ["iccv2023/transmil-camelyon16", "iccv2023/abmil-tcga", "ijcv2025/dsmil"]


def resolved(*names: str) -> RunConfig:
    return validate(RunConfig, merge(preset_values(list(names)), DATA), "test")


def whole() -> list[str]:
    return [each.name for each in presets() if not each.file.is_change]


def changes() -> list[str]:
    return [each.name for each in presets() if each.file.is_change]


def test_the_folder_holds_what_is_listed() -> None:
    assert len(preset_names()) == len(list(FOLDER.rglob("*.yaml"))) == 26
    assert {name.split("/")[0] for name in preset_names()} == {"iccv2023", "ijcv2025", "ablation"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_where_it_comes_from(name: str) -> None:
    file = read_preset(name).file
    assert file.title
    assert "Tang et al." in file.source or "the authors' program" in file.source
    assert file.is_change == name.startswith("ablation/")


@pytest.mark.parametrize("name", whole())
def test_every_whole_preset_writes_out_all_that_matters(name: str) -> None:
    """It validates, and its method and optimisation rest on no default but those named here."""
    config, given = resolved(name), read_preset(name).file.config
    assert set(given["train"]) >= set(type(config.train).model_fields) - {*ASIDE, "choose_from"}
    unsaid = set(type(config.method).model_fields) - set(given["method"])
    assert unsaid <= {"teacher_mode", "kept_order", "recycle_heads", "recycle_head_dim", "recycle_dropout"}


@pytest.mark.parametrize("name", changes())
def test_every_change_fits_on_a_whole_preset(name: str) -> None:
    base = "iccv2023/transmil-camelyon16"
    before, after = resolved(base), resolved(base, name)
    assert before.recipe != after.recipe
    assert after.train == before.train
    assert after.seed == before.seed


@pytest.mark.parametrize("name", whole())
def test_every_change_fits_on_every_whole_preset(name: str) -> None:
    """Model and method can be built; TransMIL's own two changes are refused for others."""
    model = preset_values([name])["model"]["name"]
    small = {"model": {"dim": 8} | ({"landmarks": 4} if model == "transmil" else {})}
    for change in changes():
        values = merge(preset_values([name, change]), DATA, small)
        if model != "transmil" and change in ("ablation/first-padded-row", "ablation/last-layer-attention"):
            with pytest.raises(ConfigError, match="unknown key"):
                validate(RunConfig, values, "test")
        else:
            check_recipe(validate(RunConfig, values, "test"))


# strategy, r, l, h0, hr, alpha, momentum schedule, seeds, model options that matter (table 4.7)
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "abmil-camelyon16": ("r-ham", 0.5, 0, 0.01, 0.5, 0.1, "constant", (2021, 2022, 2023), {"gated": False}),
    "abmil-tcga": ("lr-ham", 0.7, 0.2, 0.02, 1, 0.5, "cosine", (2021,), {"gated": True}),
    "transmil-camelyon16": ("l-ham", 0, 0.8, 0.03, 0.5, 0.1, "cosine", (2021, 2022, 2023), {"heads": 8}),
    "transmil-tcga": ("lr-ham", 0.6, 0.2, 0.02, 1, 0.5, "constant", (2021,), {"heads": 8}),
    "transmil-tcga-log": ("lr-ham", 0.6, 0.2, 0.02, 1, 0.5, "constant", (2021,), {"heads": 2}),
    "dsmil-camelyon16": ("r-ham", 0.5, 0, 0.01, 0.5, 0.1, "constant", (2021, 2022, 2023), {}),
    "dsmil-tcga": ("lr-ham", 0.7, 0.2, 0.02, 1, 0.5, "cosine", (2021,), {}),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_iccv2023_equals_the_published_table(name: str) -> None:
    strategy, random, low, high, factor, alpha, schedule, seeds, options = PUBLISHED[name]
    config = resolved(f"iccv2023/{name}")
    method: Any = config.method
    assert method.name == "mhim-v1"
    assert method.mask.name == strategy
    assert (method.mask.mask_ratio_random, method.mask.mask_ratio_low) == (random, low)
    assert (method.mask.mask_ratio_high, method.mask.high_candidate_factor) == (high, factor)
    assert (method.mask.high_decay, method.mask.fusion) == ("cosine", "vote")
    assert (method.consistency_weight, method.teacher_temperature, method.student_temperature) == (alpha, 0.1, 1.0)
    assert (method.momentum, method.momentum_schedule) == (0.9999, schedule)
    assert (method.teacher_init, method.student_init) == ("baseline", "projection")
    assert read_preset(f"iccv2023/{name}").file.seeds == seeds
    for key, value in options.items():
        assert getattr(config.model, key) == value
    train = config.train
    assert (train.epochs, train.lr, train.weight_decay, train.lr_schedule) == (200, 2e-4, 1e-5, "cosine")
    is_camelyon = name.endswith("camelyon16")
    assert (train.patience, train.min_epochs) == ((30, 132) if is_camelyon else (20, 72))
    assert train.choose_from == (20 if not is_camelyon and not name.startswith("dsmil") else 0)
    assert not train.standardise


@pytest.mark.parametrize("model", ["abmil", "transmil", "dsmil"])
def test_ijcv2025_equals_the_published_configuration(model: str) -> None:
    config = resolved(f"ijcv2025/{model}")
    method: Any = config.method
    assert (config.model.name, method.name, method.mask.name) == (model, "mhim-v2", "ham")
    assert method.mask.mask_ratio_high in (0.01, 0.03, 0.05)
    assert (method.mask.high_candidate_factor, method.mask.high_decay) == (1.0, "none")
    assert method.keep_ratio in (0.8, 0.9)
    assert method.recycle_tokens in (1, 5, 10)
    assert (method.recycle_momentum, method.consistency_weight, method.momentum) == (0.9999, 0.5, 0.9997)
    assert (method.student_init, method.teacher_score) == ("none", "class-probability")
    assert config.model.model_dump()["activation"] == "gelu"
    train = config.train
    assert (train.epochs, train.lr, train.weight_decay, train.patience) == (200, 2e-4, 1e-5, 20)
    assert (train.min_epochs, train.standardise, config.seed) == (102, False, 2021)
    if model == "dsmil":
        assert config.model.model_dump()["average"] == "logits"


# what each variant of section 4.8 leaves as it is, and what it sets
VARIANTS: dict[str, dict[str, Any]] = {
    "self-teacher": {"momentum": 0.0, "teacher_init": "student", "consistency_weight": 0.0},
    "without-consistency": {"momentum": 0.9999, "teacher_init": "baseline", "consistency_weight": 0.0},
    "student-copy": {"momentum": 0.0, "teacher_init": "student", "consistency_weight": 0.1},
    "init-only": {"momentum": 1.0, "teacher_init": "baseline", "consistency_weight": 0.1},
    "momentum-only": {"momentum": 0.9999, "teacher_init": "student", "consistency_weight": 0.1},
}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_ablation_variants_mean_what_the_paper_says(name: str) -> None:
    method = resolved("iccv2023/abmil-camelyon16", f"ablation/{name}").method.model_dump()
    assert {key: method[key] for key in VARIANTS[name]} == VARIANTS[name]
    assert method["mask"]["name"] == "r-ham"


def test_baseline_is_the_plain_aggregator_in_the_same_training() -> None:
    plain = resolved("iccv2023/abmil-tcga", "ablation/baseline")
    assert plain.method.name == "supervised"
    assert plain.model == resolved("iccv2023/abmil-tcga").model


def test_a_change_for_transmil_is_refused_for_another_aggregator() -> None:
    with pytest.raises(ConfigError, match="unknown key 'attention_layer'"):
        resolved("iccv2023/abmil-tcga", "ablation/last-layer-attention")


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'iccv2023/clam' \(known: ablation/baseline, "):
        read_preset("iccv2023/clam")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["mhim", *map(str, arguments)])
    return run_app(app)


def test_the_verb_lists_all_and_prints_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "presets") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())
    assert run(monkeypatch, "presets", "ablation/init-only") == 0
    assert capsys.readouterr().out == (FOLDER / "ablation" / "init-only.yaml").read_text()
    assert run(monkeypatch, "presets", "init-only") == 1
    assert "unknown preset 'init-only'" in capsys.readouterr().err


def test_training_from_two_presets_records_what_was_trained(
    monkeypatch: pytest.MonkeyPatch, cohort_folder: Path
) -> None:
    split_cohort(cohort_folder)
    data = [f"--{key}={cohort_folder / name}" for key, name in DATA.items()]
    small = ["--epochs=2", "--device=cpu", "--set=train.threads=1", "--set=model.dim=8", "--set=model.attention_dim=4"]
    layers = ["--preset=iccv2023/abmil-camelyon16", "--preset=ablation/init-only"]
    assert run(monkeypatch, "train", "-o", cohort_folder / "run", *data, *layers, *small) == 0
    config = open_run(cohort_folder / "run").config
    method = config.method.model_dump()
    assert (config.seed, config.train.epochs, config.train.patience) == (2021, 2, 30)
    assert (method["momentum"], method["mask"]["mask_ratio_random"]) == (1.0, 0.5)
