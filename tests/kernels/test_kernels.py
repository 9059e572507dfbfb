"""Every fast path equals its plain form, in values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mhim.kernels.gemm as gemm
from mhim.bench import make_step
from mhim.kernels import (
    Branches,
    Embedding,
    Rows,
    affine,
    convolve,
    depthwise,
    dropout,
    embed,
    keep_mask,
    linear,
    multiply,
    one_by_one,
    pool,
    tokens_at,
)
from mhim.kernels.dropout import realised
from mhim.models import models

CPU = torch.device("cpu")
N, D, H, A = 2500, 12, 16, 8


def rows_of(features: Tensor, index: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Rows:
    return Rows(features, index, CPU, dtype)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def projection() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, H).double()


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("rate", [0.25, 0.1, 0.5, 0.75, 0.0])
def test_masks_keep_their_share_and_nothing_else_is_regular(rate: float) -> None:
    mask = keep_mask(3, slice(0, 4000), 50, rate, CPU).double()
    spread = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(mask.mean() - (1 - rate)) <= 5 * spread
    if rate:
        centred = (mask - mask.mean(dim=0)) / mask.std(dim=0)
        between = centred.T @ centred / len(mask) - torch.eye(50)
        assert between.abs().max() < 6 / len(mask) ** 0.5
        neighbours = (mask[1:] - mask.mean()) * (mask[:-1] - mask.mean())
        assert abs(neighbours.mean()) < 5 * rate * (1 - rate) / mask.numel() ** 0.5


def test_a_mask_depends_on_seed_row_and_column_alone() -> None:
    whole = keep_mask(9, slice(0, 300), 21, 0.3, CPU)
    picked = torch.tensor([7, 250, 3])
    assert torch.equal(keep_mask(9, picked, 21, 0.3, CPU), whole[picked])
    assert torch.equal(keep_mask(9, slice(100, 200), 21, 0.3, CPU), whole[100:200])
    assert 0.3 < (keep_mask(10, slice(0, 300), 21, 0.3, CPU) != whole).double().mean() < 0.54


def test_rates_are_rounded_to_sixteen_bits() -> None:
    assert realised(0.25) == 0.25
    assert realised(0.1) == pytest.approx(0.1, abs=2**-17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_products_agree_with_and_without_the_private_call(
    dtype: torch.dtype, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 24), torch.randn(8, 24), torch.randn(8)
    expected = F.linear(x, weight, bias).relu() if relu else F.linear(x, weight, bias)
    tolerance = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    low = x.to(dtype), weight.to(dtype), bias.to(dtype)
    torch.testing.assert_close(affine(*low, relu=relu).float(), expected, **tolerance)
    monkeypatch.setattr(gemm, "onednn_linear", lambda: None)
    torch.testing.assert_close(affine(*low, relu=relu).float(), expected, **tolerance)


def test_a_private_call_that_is_gone_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        class _linear_pointwise:
            @staticmethod
            def default(x: Tensor, weight: Tensor, *_: object) -> Tensor:
                return x @ weight.T + 1

    class Namespace:
        mkldnn: object = Wrong

    for namespace in (Namespace, object):
        gemm.onednn_linear.cache_clear()
        monkeypatch.setattr(torch, "ops", namespace)
        assert gemm.onednn_linear() is None
        monkeypatch.undo()
    gemm.onednn_linear.cache_clear()


@pytest.mark.parametrize("index", [None, torch.tensor([5, 3, 2400, 3])])
def test_embedding_is_the_plain_layer(features: Tensor, projection: nn.Linear, index: Tensor | None) -> None:
    chosen = features if index is None else features[index]
    plain = projection(chosen).relu()
    fast = embed(rows_of(features, index), Embedding(projection.weight, projection.bias))
    weight = torch.randn_like(plain)
    torch.testing.assert_close(fast, plain)
    for one, other in zip(
        gradients((fast * weight).sum(), projection), gradients((plain * weight).sum(), projection), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_dropped_tokens_are_the_plain_ones_masked_and_scaled(features: Tensor, projection: nn.Linear) -> None:
    layer = Embedding(projection.weight, projection.bias, 0.25)
    tokens = embed(rows_of(features), layer, seed=4)
    expected = projection(features).relu() * keep_mask(4, slice(0, N), H, 0.25, CPU).double() / 0.75
    torch.testing.assert_close(tokens, expected)
    picked = torch.tensor([1, 2000])
    torch.testing.assert_close(tokens_at(rows_of(features), picked, layer, 4), expected[picked])


def test_half_precision_features_are_computed_in_the_models_dtype(features: Tensor, projection: nn.Linear) -> None:
    half = features.half()
    layer = Embedding(projection.weight, projection.bias)
    torch.testing.assert_close(embed(rows_of(half), layer), embed(rows_of(half.double()), layer))


class Scores(nn.Module):
    def __init__(self, gated: bool, branches: int, bias: bool) -> None:
        super().__init__()
        self.front = nn.Linear(D, H)
        self.value = nn.Linear(H, A, bias=bias)
        self.gate = nn.Linear(H, A, bias=bias) if gated else None
        self.score = nn.Linear(A, branches, bias=bias)
        self.head = nn.Linear(H, 3, bias=False)

    def fast(self, act: str, rates: tuple[float, float], budget: int, seed: int, rows: Rows) -> tuple:
        gate = (None, None) if self.gate is None else (self.gate.weight, self.gate.bias)
        branches = Branches(
            (self.value.weight, self.value.bias), gate, (self.score.weight, self.score.bias), act, rates[1]
        )
        layer = Embedding(self.front.weight, self.front.bias, rates[0])
        return pool(rows, layer, branches, self.head.weight, seed=seed, budget=budget)

    def plain(self, act: str, rates: tuple[float, float], seed: int, x: Tensor) -> tuple:
        kept = [
            keep_mask(seed + k, slice(0, len(x)), width, rate, CPU).double() / (1 - realised(rate))
            for k, width, rate in ((0, H, rates[0]), (1, A, rates[1]), (2, A, rates[1]))
        ]
        z = self.front(x).relu() * kept[0]
        mixed = getattr(torch, act)(self.value(z)) * kept[1]
        if self.gate is not None:
            mixed = mixed * self.gate(z).sigmoid() * kept[2]
        scores = self.score(mixed).T
        return scores, scores.softmax(dim=-1) @ z, self.head(z)


@pytest.mark.parametrize("budget", [1 << 30, 300_000, 0], ids=["kept", "in part", "computed again"])
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.25, 0.1)], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(
    ("gated", "branches", "bias", "act"), [(False, 1, False, "relu"), (True, 1, True, "tanh"), (True, 3, True, "tanh")]
)
def test_pooling_is_the_plain_form(features, gated, branches, bias, act, rates, budget) -> None:
    """Three chunks; a loss that reads everything that is handed out."""
    torch.manual_seed(0)
    model = Scores(gated, branches, bias).double()
    fast = model.fast(act, rates, budget, 11, rows_of(features))
    plain = model.plain(act, rates, 11, features)
    weights = [torch.randn_like(part) for part in plain]
    losses = []
    for found in (fast, plain):
        losses.append(sum((part * weight).sum() for part, weight in zip(found, weights, strict=True)))
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(gradients(losses[0], model), gradients(losses[1], model), strict=True):
        torch.testing.assert_close(one, other)


def test_a_bag_alone_is_pooled_without_rows_of_instances(features: Tensor) -> None:
    model = Scores(False, 1, False).double()
    layer = Embedding(model.front.weight, model.front.bias)
    branches = Branches((model.value.weight, None), (None, None), (model.score.weight, None), "relu")
    with torch.no_grad():
        scores, pooled, evidence = pool(rows_of(features), layer, branches, model.head.weight, instances=False)
        torch.testing.assert_close(pooled, model.plain("relu", (0.0, 0.0), 0, features)[1])
    assert scores is None
    assert evidence is None


def test_large_scores_do_not_overflow(features: Tensor) -> None:
    model = Scores(False, 1, False).double()
    with torch.no_grad():
        model.score.weight *= 1e5
        fast = model.fast("relu", (0.0, 0.0), 0, 0, rows_of(features))
        torch.testing.assert_close(fast[1], model.plain("relu", (0.0, 0.0), 0, features)[1])


@pytest.mark.parametrize("taps", [1, 5, 33])
@pytest.mark.parametrize("count", [1, 20, 64, 129])
def test_banded_products_are_the_convolution(count: int, taps: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, count, 4, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(3, taps, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(values[None], filters[:, None, :, None], padding=(taps // 2, 0), groups=3)[0]
    fast = convolve(values, filters)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(fast, plain)
    ours, theirs = (torch.autograd.grad((found * weight).sum(), (values, filters)) for found in (fast, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (12, 12)])
def test_a_depth_wise_convolution_is_the_plain_one(height: int, width: int, size: int) -> None:
    torch.manual_seed(0)
    image, kernel, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((height, width, 5), (5, 1, size, size), 5)
    )
    plain = F.conv2d(image.permute(2, 0, 1)[None], kernel, bias, padding=size // 2, groups=5)[0].permute(1, 2, 0)
    fast = depthwise(image, kernel, bias)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(fast, plain)
    ours, theirs = (torch.autograd.grad((found * weight).sum(), (image, kernel, bias)) for found in (fast, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_any_layout(dtype: torch.dtype) -> None:
    """Views of columns, transposed ones and batches; more rows than are summed away at once."""
    torch.manual_seed(0)
    wide = torch.randn(5000, 96, dtype=dtype)
    left, right, square = wide[:, 8:40], wide[:, 50:82], wide[:32, :32]
    for one, other in ((left, square), (left, square.T), (square.T, right[:32]), (left.T, right)):
        torch.testing.assert_close(multiply(one, other), one @ other, rtol=1e-4, atol=1e-3)
    total = torch.ones(32, 32, dtype=dtype)
    gemm.add_outer(total, left, right)
    torch.testing.assert_close(total, 1 + left.T @ right, rtol=1e-4, atol=1e-3)
    batch, other = (torch.randn(3, 100, 100, dtype=dtype) for _ in range(2))
    product, difference = one_by_one(lambda a, b: (multiply(a, b.mT), a - b), batch, other)
    torch.testing.assert_close(product, batch @ other.mT)
    torch.testing.assert_close(difference, batch - other)


def test_exact_attention_is_a_direct_softmax() -> None:
    torch.manual_seed(0)
    options = {"name": "transmil", "dim": 16, "heads": 2, "attention": "exact", "kernel": 5}
    model = models.build(models.parse(options), D, 2).double().eval()
    layer, tokens = model.layer1, torch.randn(3000, 16, dtype=torch.float64)
    prepared = layer.prepare(tokens, "class-token")
    q, k, v = (
        part.unflatten(1, (2, 8)).transpose(0, 1) for part in layer.attention.to_qkv(layer.norm(tokens)).chunk(3, 1)
    )
    share = (q @ k.mT / 8**0.5).softmax(dim=-1)
    mixed = share @ v + F.conv2d(v[None], layer.attention.value_convolution.weight, padding=(2, 0), groups=2)[0]
    expected = tokens + layer.attention.to_out(mixed.transpose(0, 1).flatten(1))
    torch.testing.assert_close(layer(tokens, prepared, 3000), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens, prepared, 3000), expected)
    torch.testing.assert_close(prepared.row, share[:, 0, 1:])


def test_gradients_of_small_parts() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((20, 5), (4, 5), (4,)))
    assert torch.autograd.gradcheck(lambda *parts: linear(*parts, relu=True), (x, weight, bias))
    assert torch.autograd.gradcheck(lambda part: dropout(part, 0.3, 5), (x,))


def test_dropout_of_nothing_is_the_input(features: Tensor) -> None:
    assert dropout(features, 0.0) is features


@pytest.mark.parametrize("name", ["abmil", "clam-sb", "clam-mb", "dtfd", "dsmil", "transmil", "mean", "max"])
class TestModels:
    """The one pass of a model equals ``aggregate(project(features))``, and a choice of rows that of a copy."""

    def model(self, name: str):
        torch.manual_seed(0)
        options = {"name": name, "dim": 16} | ({"heads": 2, "landmarks": 8} if name == "transmil" else {})
        model = models.build(models.parse(options), D, 2).double().eval()
        model.standardise(torch.linspace(-1, 1, D), torch.linspace(0.5, 2, D))
        return model

    def test_one_pass_is_the_plain_form(self, name, features):
        model = self.model(name)
        plain = model.aggregate(model.project(model.standardised(features)))
        fast = model(features)
        for field in ("logits", "probabilities", "attention", "contributions", "bag_embedding", "instance_scores"):
            one, other = getattr(fast, field), getattr(plain, field)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)

    def test_chosen_rows_are_a_copy_of_them(self, name, features):
        model, index = self.model(name), torch.tensor([3, 1, 2000, 77])
        torch.testing.assert_close(model(features, index).logits, model(features[index]).logits)

    def test_without_instances_the_bag_is_the_same(self, name, features):
        model = self.model(name)
        torch.testing.assert_close(model(features, instances=False).logits, model(features).logits)

    def test_bfloat16_is_near(self, name, features):
        model = self.model(name).float()
        exact = model(features.float()).probabilities
        with torch.autocast("cpu", torch.bfloat16):
            near = model(features.float()).probabilities
        torch.testing.assert_close(near.float(), exact, rtol=0, atol=0.05)

    def test_a_subclass_with_its_own_projection_gives_up_the_fast_form(self, name, features):
        class Doubled(type(self.model(name))):
            def project(self, features):
                return 2 * super().project(features)

        model = self.model(name)
        other = copy.deepcopy(model)
        other.__class__ = Doubled
        plain = other.aggregate(other.project(other.standardised(features)))
        torch.testing.assert_close(other(features).logits, plain.logits)


@pytest.mark.parametrize("method", ["supervised", "mhim-v1", "mhim-v2"])
def test_an_outside_harness_takes_steps_that_learn(method: str) -> None:
    torch.manual_seed(0)
    bags = [torch.randn(60, D) + label for label in (0, 1)]
    step = make_step({"name": "abmil", "dim": 16}, method, D, 2, seed=0)
    losses = [float(sum(step(bag, label) for label, bag in enumerate(bags))) for _ in range(150)]
    assert losses[-1] < 0.8 * losses[0]


def test_equal_seeds_take_equal_steps() -> None:
    bag = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        step = make_step("abmil", "mhim-v1", D, 2, seed=3)
        runs.append([float(step(bag, 1)) for _ in range(3)])
    assert runs[0] == runs[1]
