"""MHIM v2: the recycler against the reference arrays, what stays and what moves, what is deployed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mhim.checkpoint import load_model, save_model
from mhim.errors import ConfigError
from mhim.methods import MHIMv2, Step, methods
from mhim.methods.mhim import teacher_salience
from mhim.methods.recycle import Recycler, split_kept, token_width
from mhim.models import MILModel, models
from mhim.models.contract import count_parameters
from mhim.weights import import_checkpoint

SMALL = {
    "abmil": {"dim": 8, "attention_dim": 4},
    "dsmil": {"dim": 8, "query_dim": 4},
    "transmil": {"dim": 8, "heads": 2, "landmarks": 4},
    "clam-mb": {"dim": 8, "attention_dim": 4},
    "dtfd": {"dim": 8},
    "mean": {"dim": 8},
    "max": {"dim": 8},
    "clam-sb": {"dim": 8, "attention_dim": 4},
}


def small_model(name: str = "abmil", seed: int = 0) -> MILModel:
    torch.manual_seed(seed)
    return models.build(models.parse({"name": name, **SMALL[name]}), 5, 2)


def build(model: MILModel, baseline: MILModel | None, **options: Any) -> MHIMv2:
    torch.manual_seed(3)
    built = methods.build(methods.parse({"name": "mhim-v2", **options}), model, baseline)
    assert isinstance(built, MHIMv2)
    return built


def step(index: int = 0, seed: int = 0) -> Step:
    return Step(index, 10, torch.Generator().manual_seed(seed))


def bag(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(n))


def outputs(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "outputs" / "mhim_v2_outputs.npz") as file:
        return dict(file)


def codes(shared: Path, n: int) -> torch.Tensor:
    with np.load(shared / "golden" / "inputs" / "bags.npz") as file:
        return torch.from_numpy(file[f"codes_N{n}"])


def reference(shared: Path) -> tuple[Recycler, dict[str, torch.Tensor]]:
    """The published recycler of width 64 with 4 heads of 16 and 5 queries, and its arrays."""
    golden = shared / "golden"
    theirs = load_file(golden / "checkpoints" / "mhim_v2_merge_small64_random.safetensors")
    recycler = Recycler(64, 5, 4, 16, 0.1).eval()
    names = {"attn.to_kv": "to_key_value", "attn.to_q": "to_query", "attn.to_out.0": "to_out", "norm": "norm"}
    state = {"query": theirs["global_q_mm"][0]}
    for key, value in theirs.items():
        stem, _, kind = key.rpartition(".")
        if stem in names:
            state[f"{names[stem]}.{kind}"] = value
    recycler.load_state_dict(state)
    return recycler, {key: torch.from_numpy(value) for key, value in outputs(shared).items() if "merge" in key}


def test_recycled_tokens_equal_the_reference(shared: Path) -> None:
    recycler, arrays = reference(shared)
    assert torch.equal(recycler.query, arrays["merge_q_before"])
    for n in (1, 7, 100):
        if f"merge_x_N{n}" in arrays:
            assert_close(recycler(arrays[f"merge_x_N{n}"]), arrays[f"merge_z_N{n}"], rtol=1e-5, atol=1e-6)


def test_the_query_follows_by_the_closed_form(shared: Path) -> None:
    """q + (1 - m)(z - q). The array "merge_q_after_ema_with_z_N100" equals the one after the training call."""
    recycler, arrays = reference(shared)
    assert torch.equal(arrays["merge_q_after_ema_with_z_N100"], arrays["merge_train_q_after"])
    query, fresh = arrays["merge_q_before"].double(), arrays["merge_train_out"][80:]
    recycler.follow(fresh, 0.9999)
    assert_close(recycler.query.data.double(), query + 0.0001 * (fresh.double() - query), rtol=0, atol=1e-8)
    assert_close(recycler.query.data, arrays["merge_q_after_ema_with_z_N100"], rtol=0, atol=1e-8)


def test_a_training_call_equals_the_reference(shared: Path) -> None:
    """Keep ratio 0.8 of 100, seed 0, no dropout: kept, recycled, output order and the query afterwards."""
    recycler, arrays = reference(shared)
    kept, rest = split_kept(100, 0.8, "drawn", torch.Generator().manual_seed(0))
    tokens = arrays["merge_x_N100"]
    assert torch.equal(tokens[kept], arrays["merge_train_keep"])
    assert torch.equal(tokens[rest], arrays["merge_train_recycled"])
    fresh = recycler(tokens[rest])
    assert_close(torch.cat([tokens[kept], fresh]), arrays["merge_train_out"], rtol=1e-5, atol=1e-6)
    recycler.follow(fresh, 0.9999)
    assert_close(recycler.query.data, arrays["merge_train_q_after"], rtol=0, atol=1e-8)
    ascending = split_kept(100, 0.8, "ascending", torch.Generator().manual_seed(0))
    assert torch.equal(ascending[0], kept.sort().values)
    assert torch.equal(ascending[1], rest.sort().values)


@pytest.mark.parametrize("scale", [64, 512])
@pytest.mark.parametrize("n", [1, 7, 255, 500, 3000])
def test_class_aware_scores_of_abmil_equal_the_reference(shared: Path, n: int, scale: int) -> None:
    golden = shared / "golden"
    expected = outputs(shared)
    if f"abmil_score_N{n}_s{scale}_f64" not in expected:
        pytest.skip("kept for independent checks")
    model = import_checkpoint(golden / "checkpoints" / "mhim_v1_abmil_c16_fold0_seed2021.safetensors").model.double()
    features = codes(shared, n).double() / scale
    with torch.no_grad():
        score = teacher_salience(model(features), "class-probability")
    np.testing.assert_allclose(score[0].numpy(), expected[f"abmil_score_N{n}_s{scale}_f64"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [7, 255, 500, 3000])
def test_scores_of_dsmil_and_transmil_equal_the_reference(shared: Path, n: int) -> None:
    """DSMIL: attn2score on is the largest instance score, off the largest attention."""
    golden = shared / "golden"
    expected = outputs(shared)
    cases = {
        "dsmil_score_attn2score1": ("mhim_v1_dsmil_c16_fold0_seed2021", "class-probability"),
        "dsmil_score_attn2score0": ("mhim_v1_dsmil_c16_fold0_seed2021", "attention"),
        "transmil_score": ("mhim_v1_transmil_full_random_f16", "class-probability"),
    }
    for name, (checkpoint, score) in cases.items():
        if f"{name}_N{n}" not in expected:
            continue
        model = import_checkpoint(golden / "checkpoints" / f"{checkpoint}.safetensors").model
        scale = 64 if name.startswith("transmil") else 512
        with torch.no_grad():
            found = teacher_salience(model(codes(shared, n).float() / scale), score)[0].numpy()
        np.testing.assert_allclose(found, expected[f"{name}_N{n}"], rtol=1e-5)


def test_the_example_that_can_be_checked_by_hand(shared: Path) -> None:
    """softmax_c(w_c . a_i z_i), its maximum over classes; the bias has no effect."""
    arrays = outputs(shared)
    scaled = torch.from_numpy(arrays["tiny_attn"][:, None] * arrays["tiny_feat"])
    score = (scaled @ torch.from_numpy(arrays["tiny_W"]).T).softmax(dim=-1).amax(dim=-1)
    np.testing.assert_allclose(score.numpy(), arrays["tiny_score"], rtol=1e-6)


def test_published_size_and_start_of_the_recycler() -> None:
    torch.manual_seed(0)
    recycler = Recycler(512, 5, 8, 64, 0.1)
    assert count_parameters(recycler) == 1_050_112 + 512 * 5
    assert float(recycler.query.abs().max()) <= 0.06847
    assert float(recycler.query.abs().max()) > 0.068
    assert not recycler.query.requires_grad


def test_one_instance_is_recycled_to_its_own_value_for_every_query() -> None:
    """Attention over one key is 1, whatever the query."""
    recycler = Recycler(6, 3, 2, 4, 0.1).eval()
    one = torch.randn(1, 6)
    value = recycler.to_key_value(recycler.norm(one)).chunk(2, dim=-1)[1]
    assert_close(recycler(one), recycler.to_out(value).expand(3, -1))


def test_recycling_does_not_depend_on_the_order() -> None:
    recycler = Recycler(6, 3, 2, 4, 0.1).eval()
    rest = torch.randn(9, 6)
    assert_close(recycler(rest), recycler(rest[torch.randperm(9)]))


@pytest.mark.parametrize(
    ("count", "ratio", "kept"), [(100, 0.8, 80), (7, 0.5, 3), (1, 0.2, 1), (3, 0.2, 1), (9, 1.0, 9)]
)
def test_how_many_stay(count: int, ratio: float, kept: int) -> None:
    stay, rest = split_kept(count, ratio, "ascending", torch.Generator().manual_seed(1))
    assert len(stay) == kept
    assert torch.equal(torch.cat([stay, rest]).sort().values, torch.arange(count))
    assert torch.equal(stay, stay.sort().values)


def test_every_instance_stays_equally_often() -> None:
    source = torch.Generator().manual_seed(2)
    counts = torch.zeros(20)
    for _ in range(2000):
        counts[split_kept(20, 0.3, "ascending", source)[0]] += 1
    assert (counts / 2000 - 0.3).abs().max() < 5 * (0.3 * 0.7 / 2000) ** 0.5


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_a_step_around_every_aggregator(name: str, n: int) -> None:
    model, baseline = small_model(name), small_model(name, 1)
    method = build(model, baseline, keep_ratio=0.5, recycle_tokens=3)
    query = method.recycler.query.clone()
    result = method.step(bag(n), torch.tensor(1), step())
    result.loss.backward()
    assert result.loss.isfinite()
    assert torch.equal(method.recycler.query, query)
    assert result.mining is not None
    kept = len(result.mining.selection.keep_index)
    stays = max(1, int(kept * 0.5))
    assert len(result.mining.shown) == stays
    recycled = 3 if kept > stays else 0
    assert result.mining.student.salience.shape[1] == stays + recycled
    method.after_step(step())
    assert torch.equal(method.recycler.query, query) == (recycled == 0)
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_the_student_sees_kept_tokens_and_then_recycled_ones() -> None:
    method = build(small_model().eval(), small_model("abmil", 1), recycle_dropout=0.0, keep_ratio=0.5).eval()
    result = method.step(bag(), torch.tensor(1), step(seed=4))
    assert result.mining is not None
    keep = result.mining.selection.keep_index
    rest = keep[~torch.isin(keep, result.mining.shown)]
    tokens = method.model.project(bag())
    sequence = torch.cat([tokens[result.mining.shown], method.recycler(tokens[rest])])
    assert_close(result.mining.student.logits, method.model.aggregate(sequence).logits)


def test_the_recycler_is_trained_but_for_its_query() -> None:
    method = build(small_model(), small_model("abmil", 1), keep_ratio=0.5)
    trained = {id(parameter) for parameter in method.trainable()}
    for name, parameter in method.recycler.named_parameters():
        assert (id(parameter) in trained) == (name != "query")
    method.step(bag(), torch.tensor(1), step()).loss.backward()
    for name, parameter in method.recycler.named_parameters():
        assert (parameter.grad is not None) == (name != "query"), name


def test_keeping_all_is_v1_with_the_same_mask() -> None:
    """keep_ratio 1: no recycled tokens; the loss is v1's under the same mask, score and weights."""
    options = {"mask": {"name": "ham", "mask_ratio_high": 0.2}, "student_init": "none", "consistency_weight": 0.3}
    baseline = small_model("abmil", 1)
    second = build(small_model().eval(), baseline, keep_ratio=1.0, **options).eval()
    config = methods.parse({"name": "mhim-v1", "teacher_score": "class-probability", **options})
    first = methods.build(config, small_model(), baseline).eval()
    losses = [method.step(bag(), torch.tensor(1), step()).loss for method in (first, second)]
    assert_close(losses[0], losses[1])
    before = second.recycler.query.clone()
    second.after_step(step())
    assert torch.equal(second.recycler.query, before)


def test_features_are_standardised_once() -> None:
    """The recycled path sees the same tokens as the aggregator's own forward."""
    model = small_model()
    model.standardise(torch.full((5,), 2.0), torch.full((5,), 3.0))
    method = build(model.eval(), copy.deepcopy(model), keep_ratio=1.0).eval()
    mining = method.step(bag(), torch.tensor(1), step()).mining
    assert mining is not None
    assert_close(mining.student.logits, model(bag()[mining.selection.keep_index]).logits)


def test_the_deployed_model_is_the_baselines(tmp_path: Path) -> None:
    """No tensor of teacher or recycler in the file; names, shapes and number of parameters as the baseline's."""
    baseline = small_model("abmil", 1)
    method = build(small_model(), baseline)
    method.step(bag(), torch.tensor(1), step()).loss.backward()
    save_model(tmp_path / "model.safetensors", method.model, ["a", "b"])
    tensors = load_file(tmp_path / "model.safetensors")
    assert {key: value.shape for key, value in tensors.items()} == {
        key: value.shape for key, value in baseline.state_dict().items()
    }
    assert count_parameters(load_model(tmp_path / "model.safetensors")) == count_parameters(baseline)


def test_token_width_is_asked_without_a_trace() -> None:
    model = small_model().train()
    random = torch.get_rng_state()
    assert token_width(model) == 8
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_defaults_are_the_published_ones() -> None:
    config = MHIMv2.Config()
    assert (config.momentum, config.momentum_schedule, config.consistency_weight) == (0.9997, "constant", 0.5)
    assert (config.student_init, config.teacher_init, config.teacher_score) == ("none", "baseline", "class-probability")
    assert config.mask.name == "ham"
    assert config.mask.high_decay == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio: Input should be greater than 0"),
        ({"keep_ratio": 1.1}, "keep_ratio: Input should be less than or equal to 1"),
        ({"recycle_tokens": 0}, "recycle_tokens"),
        ({"recycle_momentum": 1.5}, "recycle_momentum"),
        ({"teacher_score": "score"}, "teacher_score: Input should be 'model', 'attention'"),
        ({"merge_ratio": 0.8}, "unknown key 'merge_ratio'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        methods.parse({"name": "mhim-v2", **options})
    assert message in str(caught.value)
