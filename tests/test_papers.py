"""mhim reproduce-paper: the set's file, the networks side by side, the protocol, the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import ArtefactError, FeatureError
from mhim.papers.ilse2018 import PUBLISHED, RECIPES, FoldNetworks, Pooling, Recipe, bag_rows, train_repetition
from mhim.papers.mil_sets import MILSet, read_mil_set, training_scale
from mhim.papers.reproduce import plan_tasks, run_tasks, summarise

GENERATOR = torch.Generator().manual_seed(0)


def write_set(path: Path, bags: int = 12, folds: int = 3, dim: int = 4, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 6, size=bags)
    label = (np.arange(bags) % 2).astype(np.int8)
    index = np.repeat(np.arange(bags), count).astype(np.int32)
    features = rng.normal(size=(len(index), dim)).astype(np.float32) + 4 * label[index, None]
    test_fold = np.stack([np.arange(bags) // 2 % folds, (np.arange(bags) // 2 + 1) % folds]).astype(np.int8)
    arrays: dict[str, Any] = {"features": features, "bag_index": index, "bag_label": label, "test_fold": test_fold}
    np.savez(path, **(arrays | changes))
    return path


@pytest.fixture
def data(tmp_path: Path) -> MILSet:
    return read_mil_set(write_set(tmp_path / "easy.npz"))


@pytest.mark.parametrize("pooling", ["attention", "gated"])
def test_networks_side_by_side_equal_plain_layers(pooling: Pooling, data: MILSet) -> None:
    """Each fold's logit and attention against torch's own layers with its weights, on a bag without padding."""
    networks = FoldNetworks(3, 4, pooling, 0.0, GENERATOR)
    for bias in networks.biases:
        bias.data.normal_(generator=GENERATOR)
    bags = np.array([0, 5, 7])
    index, real = bag_rows(data, bags)
    x = torch.from_numpy(data.features)[index]
    logits = networks(x, real, training=False)
    for fold, bag in enumerate(bags):
        layers = [_linear(networks, number, fold) for number in range(len(networks.weights))]
        h = torch.from_numpy(data.features[data.start[bag] : data.start[bag] + data.count[bag]])
        for layer in layers[:3]:
            h = layer(h).relu()
        gate = layers[3](h).tanh() * (layers[6](h).sigmoid() if pooling == "gated" else 1)
        attention = layers[4](gate)[:, 0].softmax(0)
        torch.testing.assert_close(logits[fold], layers[5](attention @ h)[0])


def _linear(networks: FoldNetworks, number: int, fold: int) -> nn.Linear:
    weight, bias = networks.weights[number][fold], networks.biases[number][fold, 0]
    layer = nn.Linear(*weight.shape)
    layer.load_state_dict({"weight": weight.detach().T, "bias": bias.detach()})
    return layer


def test_a_fold_trains_as_if_it_were_alone(data: MILSet) -> None:
    """Two folds of equal data and weights stay equal; a third with other data changes nothing for them."""
    from mhim.papers.ilse2018 import _epoch

    networks = FoldNetworks(2, 4, "gated", 0.0, torch.Generator().manual_seed(1))
    alone = FoldNetworks(1, 4, "gated", 0.0, torch.Generator().manual_seed(1))
    for together, single in zip(networks.parameters, alone.parameters, strict=True):
        single.data.copy_(together.data[:1])
    bags = [np.array([0]), np.array([1, 4, 6])]  # the first fold waits for two steps of each epoch
    features = torch.from_numpy(np.stack([data.features] * 2))
    for each, parts in ((networks, bags), (alone, bags[:1])):
        optimiser = torch.optim.SGD(each.parameters, lr=0.01, momentum=0.9, weight_decay=0.1, fused=True)
        for _ in range(3):
            _epoch(each, optimiser, data, features[: len(parts)], parts, torch.Generator().manual_seed(0))
    for together, single in zip(networks.parameters, alone.parameters, strict=True):
        torch.testing.assert_close(together[:1], single)


def test_features_are_scaled_by_training_bags_alone(data: MILSet) -> None:
    train = np.array([0, 1, 2])
    mean, scale = training_scale(data, train)
    rows = data.features[: data.count[:3].sum()]
    np.testing.assert_allclose((rows - mean) / scale, (rows - rows.mean(0)) / rows.std(0), atol=1e-5)


def test_an_easy_set_is_learned_and_comes_out_the_same_again(data: MILSet) -> None:
    first, again, other = (train_repetition(data, r, "attention", Recipe(5e-3, 0.0, 10), 0) for r in (0, 0, 1))
    assert first.accuracy.mean() >= 0.9
    assert (first.best_accuracy >= first.accuracy).all()
    np.testing.assert_array_equal(first.probability, again.probability)
    assert sorted(first.bag) == list(range(12))
    assert not np.array_equal(first.probability[np.argsort(first.bag)], other.probability[np.argsort(other.bag)])


def test_recipes_and_published_values() -> None:
    assert (RECIPES["tiger"].lr, RECIPES["tiger"].weight_decay, RECIPES["tiger"].epochs) == (1e-4, 1e-2, 100)
    assert PUBLISHED["musk1", "gated"] == (0.900, 0.050)
    assert {name for name, _ in PUBLISHED} == set(RECIPES)


def test_the_table_by_hand_and_going_on(data: MILSet, tmp_path: Path) -> None:
    tasks = plan_tasks(data, ["attention"], 5, Recipe(epochs=1), 0, tmp_path)
    assert len(tasks) == 2  # as many as the file has
    run_tasks(tasks, 0, lambda: None)
    before = [task.file.stat().st_mtime_ns for task in tasks]
    run_tasks(tasks, 0, lambda: None)
    assert [task.file.stat().st_mtime_ns for task in tasks] == before
    (row,) = summarise(tasks)
    folds = np.array([json.loads(task.file.read_text())["result"]["accuracy"] for task in tasks])
    assert row.accuracy == pytest.approx(folds.mean())
    assert row.error == pytest.approx((folds.std(axis=1, ddof=1) / np.sqrt(3)).mean())
    assert row.verdict == "not in the paper"
    with pytest.raises(ArtefactError, match="another recipe"):
        run_tasks(plan_tasks(data, ["attention"], 5, Recipe(epochs=2), 0, tmp_path), 0, lambda: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bag_label": np.ones(12)}, "must hold 0 and 1"),
        ({"features": np.full((3, 4), np.nan)}, "different length"),
        ({"test_fold": np.zeros((1, 12), dtype=int)}, "nothing to train on"),
        ({"bag_label": np.zeros((2, 2))}, "expected 1 axes"),
    ],
)
def test_faulty_sets_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=message):
        read_mil_set(write_set(tmp_path / "set.npz", **changes))


Command = Callable[..., int]


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def mhim(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["mhim", "reproduce-paper", *map(str, arguments)])
        return run_app(app)

    path = write_set(tmp_path / "musk1.npz")
    options = ("ilse2018", "--data", path, "-o", tmp_path / "out", "--repeats", 1, "--pooling", "gated", "--epochs", 1)
    assert mhim(*options, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert mhim(*options) == 0
    text = (tmp_path / "out" / "musk1" / "results.md").read_text()
    assert "0.900 ± 0.050" in text
    assert "not verified" in text
    assert "changed from the recipe" in text  # one epoch is not the paper's recipe
    assert mhim("ilse2019", "--data", path, "-o", tmp_path) == 1
    assert mhim("ilse2018", "--data", tmp_path / "no.npz", "-o", tmp_path) == 1
    assert "no such file" in capsys.readouterr().err


def test_the_real_sets_can_be_read(shared: Path) -> None:
    folder = shared / "data" / "mil_benchmarks"
    if not folder.is_dir():
        pytest.skip("needs the classic sets beside the checkout")
    data = read_mil_set(folder / "musk1.npz")
    assert (len(data), int(data.label.sum()), data.features.shape) == (92, 47, (476, 166))
