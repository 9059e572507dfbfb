"""What every aggregator must keep, whoever wrote it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from mhim.checkpoint import load_model, read_metadata, save_model
from mhim.errors import ConfigError, FeatureError
from mhim.kernels import Bags
from mhim.models import MILOutput, models

PER_INSTANCE = {
    "attention": 1,
    "instance_scores": 0,
    "contributions": 0,
    "instance_probabilities": 0,
    "salience": 1,
    "class_salience": 1,
}
"""Quantities of a result with an instance axis, and which axis that is."""


def quantities(output: MILOutput) -> dict[str, torch.Tensor]:
    """Everything that a result says, except the extras."""
    names = ["logits", "probabilities", "bag_embedding", *PER_INSTANCE]
    values = {name: getattr(output, name) for name in names}
    return {name: value.detach() for name, value in values.items() if value is not None}


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_shapes_and_finite_numbers(subject, bag, n):
    model = subject.build().double()
    output = model(bag(n))
    assert output.logits.shape == output.probabilities.shape == (3,)
    assert output.bag_embedding.shape[-1] == model.project(bag(n)).shape[-1]
    for name, value in quantities(output).items():
        assert value.isfinite().all(), name
        if name in PER_INSTANCE:
            assert value.shape[PER_INSTANCE[name]] == n, name
            assert value.shape[1] == 3 or PER_INSTANCE[name] == 1, name


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_attention_rows_sum_to_one_where_the_model_says_so(subject, bag, n):
    model = subject.build().double()
    attention = model(bag(n)).attention
    if attention is None:
        return
    sums = attention.sum(dim=1)
    is_normalised = bool((attention >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-12)
    assert is_normalised == type(model).attention_is_normalised


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_contributions_add_up_to_the_logits(subject, bag, n):
    output = subject.build().double()(bag(n))
    assert output.decomposes == (output.contributions is not None) == (output.bias is not None)
    if output.decomposes:
        assert_close(output.contributions.sum(dim=0) + output.bias, output.logits, rtol=0, atol=1e-12)


def test_probabilities_are_probabilities(subject, bag):
    """In [0, 1]; they sum to 1 over classes unless outputs are independent by configuration."""
    model = subject.build().double()
    output = model(bag(40))
    is_exclusive = getattr(model.config, "output", "softmax") == "softmax"
    for values in (output.probabilities[None], output.instance_probabilities):
        if values is None:
            continue
        assert ((values >= 0) & (values <= 1)).all()
        if is_exclusive:
            assert_close(values.sum(dim=-1), torch.ones(len(values), dtype=values.dtype))


def test_order_of_instances_matters_exactly_where_the_model_says_so(subject, bag):
    model = subject.build().double()
    features, order = bag(40), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    straight, shuffled = quantities(model(features)), quantities(model(features[order]))
    for name, axis in PER_INSTANCE.items():
        if name in straight:
            straight[name] = straight[name].index_select(axis, order)
    same = all(torch.allclose(straight[name], shuffled[name], rtol=1e-9, atol=1e-11) for name in straight)
    assert same == type(model).is_permutation_equivariant


def test_tokens_come_from_their_own_row(subject, bag):
    """MHIM masks before or after the projection; that must be the same."""
    model = subject.build().double()
    keep = torch.tensor([0, 3, 4, 11, 38])
    assert_close(model.project(bag(40)[keep]), model.project(bag(40))[keep], rtol=1e-12, atol=1e-12)


def test_evaluation_is_repeatable_and_draws_no_random_number(subject, bag):
    model = subject.build()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = quantities(model(bag(40))), quantities(model(bag(40)))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_training_pass_changes_no_state(subject, bag):
    model = subject.build().train()
    state = copy.deepcopy(model.state_dict())
    sum(model.losses(model(bag(40)), torch.tensor(1)).values()).backward()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_gradients_reach_every_trainable_parameter(subject, bag):
    """Over one bag under every label. A shift of all attention scores changes nothing: its gradient is 0 by law."""
    model = subject.build().double().train()
    torch.manual_seed(0)
    for label in range(3):
        sum(model.losses(model(bag(60)), torch.tensor(label)).values()).backward()
    unreached = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad
        and (value.grad is None or not (value.grad.any() or name.endswith("attention.score.bias")))
    ]
    assert unreached == []


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_losses_are_finite_scalars(subject, bag, n):
    model = subject.build().train()
    terms = model.losses(model(bag(n)), torch.tensor(2))
    assert terms
    assert all(term.shape == () and term.isfinite() and term >= 0 for term in terms.values())
    assert sum(terms.values()).requires_grad


def test_several_bags_are_each_bag_by_itself(subject, bag):
    """In the order given, on chosen rows as on all, with and without what has a row per instance."""
    model, bags = subject.build().double(), Bags([bag(n) for n in (7, 1, 40, 2)])
    rows = [torch.tensor(part) for part in ([0, 3, 6], [0], [39, 2, 5, 7, 11], [1])]
    for chosen in (None, rows):
        for place, found in enumerate(model.forward_bags(bags, chosen)):
            expected = quantities(model(bags[place], None if chosen is None else chosen[place]))
            assert quantities(found).keys() == expected.keys()
            assert_close(quantities(found), expected, rtol=1e-9, atol=1e-11)
    for features, found in zip(bags, model.forward_bags(bags, instances=False), strict=True):
        assert_close(found.logits, model(features).logits, rtol=1e-9, atol=1e-11)


def test_saved_and_loaded_it_is_the_same_to_the_bit(subject, bag, tmp_path):
    model = subject.build()
    path = tmp_path / "model.safetensors"
    save_model(path, model, ["a", "b", "c"], {"fold": "1"})
    loaded = load_model(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert read_metadata(path)["classes"] == ["a", "b", "c"]
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    before, after = quantities(model(bag(40))), quantities(loaded(bag(40)))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_bag_of_a_hundred_thousand(subject, bag):
    model = subject.build()
    with torch.inference_mode():
        output = model(bag(100_000, torch.float16))
    assert output.logits.isfinite().all()
    assert output.salience.shape[1] == 100_000
    assert output.salience.isfinite().all()


def test_half_precision_features_are_computed_in_float32(subject, bag):
    model = subject.build()
    half = bag(40, torch.float16)
    output = model(half)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.logits, model(half.float()).logits)


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("in_dim", [1, 50])
def test_any_width_and_class_count(subject, bag, n_classes, in_dim):
    output = subject.build(n_classes, in_dim)(bag(9, in_dim=in_dim))
    assert output.logits.shape == (n_classes,)
    assert output.logits.isfinite().all()


def test_unusable_bags_are_refused(subject, bag):
    model = subject.build()
    with pytest.raises(FeatureError, match="zero instances"):
        model(bag(0))
    with pytest.raises(FeatureError, match=r"expects \(N, 24\)"):
        model(bag(3, in_dim=23))
    with pytest.raises(FeatureError, match="expects"):
        model.check(bag(3)[None])


def test_too_few_classes_are_refused(subject):
    fewest = models[subject.name].fewest_classes(subject.build().config)
    with pytest.raises(ConfigError, match=f"at least {fewest}"):
        subject.build(fewest - 1)


def test_every_option_has_a_description_and_every_number_a_range(subject):
    for name, schema in models[subject.name].Config.model_json_schema()["properties"].items():
        if name == "name":
            continue
        assert schema.get("description"), name
        for part in schema.get("anyOf", [schema]):
            if part.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & part.keys(), name


def test_it_says_where_it_comes_from(subject):
    cls = models[subject.name]
    assert cls.__doc__
    assert cls.paper
    assert cls.licence
