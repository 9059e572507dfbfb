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
from mhim.papers.catalogue import PAPERS
from mhim.papers.dsmil2021 import DualStreams
from mhim.papers.ilse2018 import FoldNetworks, Pooling
from mhim.papers.mil_sets import MILSet, read_mil_set, training_scale
from mhim.papers.repetition import Recipe, accuracy_at_best, bag_rows, run_epoch, train_repetition
from mhim.papers.reproduce import Row, plan_tasks, run_tasks, summarise
from mhim.protocols import published_scores

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


def bags_of(data: MILSet, bags: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return bag_rows(data, torch.from_numpy(np.stack([data.features] * len(bags))), bags)


@pytest.mark.parametrize("pooling", ["attention", "gated"])
def test_networks_side_by_side_equal_plain_layers(pooling: Pooling, data: MILSet) -> None:
    """Each fold's logit and its gradient against torch's own layers with its weights, on a bag without padding."""
    networks = FoldNetworks(3, 4, pooling, Recipe(0.1, 0.0, 1), GENERATOR)
    for bias in networks.biases:
        bias.normal_(generator=GENERATOR)
    bags = np.array([0, 5, 7])
    x, real = bags_of(data, bags)
    target = torch.from_numpy(data.label[bags]).float()
    activity = networks.forward(x, real, training=True)
    networks.add_gradient(activity, target, 0.0)
    gradients = dict(zip(map(id, networks.parameters), networks.velocity, strict=True))
    for fold, bag in enumerate(bags):
        layers = [_linear(networks, number, fold) for number in range(len(networks.weights))]
        h = torch.from_numpy(data.features[data.start[bag] : data.start[bag] + data.count[bag]])
        for layer in layers[:3]:
            h = layer(h).relu()
        gate = layers[3](h).tanh() * (layers[6](h).sigmoid() if pooling == "gated" else 1)
        attention = layers[4](gate)[:, 0].softmax(0)
        logit = layers[5](attention @ h)[0]
        torch.testing.assert_close(activity.logit[fold], logit)
        nn.functional.binary_cross_entropy_with_logits(logit, target[fold]).backward()
        for number, layer in enumerate(layers):
            weight, bias = gradients[id(networks.weights[number])], gradients[id(networks.biases[number])]
            torch.testing.assert_close(weight[fold].T, layer.weight.grad)
            torch.testing.assert_close(bias[fold, 0], layer.bias.grad)


def test_dropout_stands_in_the_gradient_as_in_the_forward_pass(data: MILSet) -> None:
    """A step against the gradient lowers the loss of the same draw, by what the gradient says."""
    networks = FoldNetworks(1, 4, "gated", Recipe(0.1, 0.0, 1, dropout=0.5), torch.Generator().manual_seed(3))
    networks.weights[0] *= 3
    x, real = bags_of(data, np.array([4]))
    target, losses = torch.ones(1), []
    for moved in (0.0, 1e-4):
        for parameter, velocity in zip(networks.parameters, networks.velocity, strict=True):
            parameter.sub_(velocity, alpha=moved)
        networks.generator.manual_seed(5)
        activity = networks.forward(x, real, training=True)
        losses.append(float(nn.functional.softplus(-activity.logit.double())))
        if not moved:
            networks.add_gradient(activity, target, 0.0)
    square = float(sum(velocity.double().square().sum() for velocity in networks.velocity))
    assert square > 0
    assert losses[0] - losses[1] == pytest.approx(1e-4 * square, rel=0.01)


def test_a_step_is_that_of_torch(data: MILSet) -> None:
    """Momentum and weight decay over several steps, against torch.optim.SGD and automatic differentiation."""
    networks = FoldNetworks(2, 4, "attention", Recipe(0.05, 0.1, 1), torch.Generator().manual_seed(1))
    theirs = FoldNetworks(2, 4, "attention", Recipe(0.05, 0.1, 1), torch.Generator().manual_seed(1))
    leaves = [parameter.requires_grad_() for parameter in theirs.parameters]
    optimiser = torch.optim.SGD(leaves, lr=0.05, momentum=0.9, weight_decay=0.1)
    for bags in (np.array([0, 1]), np.array([2, 5]), np.array([3, 4])):
        x, real = bags_of(data, bags)
        target = torch.from_numpy(data.label[bags]).float()
        networks.step(x, real, target, torch.ones(2, dtype=torch.bool))
        optimiser.zero_grad()
        logit = theirs.forward(x, real, training=True).logit
        nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="sum").backward()
        optimiser.step()
    for ours, leaf in zip(networks.parameters, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.detach())


def _linear(networks: FoldNetworks, number: int, fold: int) -> nn.Linear:
    weight, bias = networks.weights[number][fold], networks.biases[number][fold, 0]
    layer = nn.Linear(weight.shape[0], weight.shape[1])
    layer.load_state_dict({"weight": weight.T, "bias": bias})
    return layer


def test_dsmil_side_by_side_equals_its_definition(data: MILSet) -> None:
    """Both streams written out instance by instance for each fold, padding and all."""
    networks = DualStreams(4, torch.ones(3), Recipe(0.1, 0.0, 1), GENERATOR)
    bags = np.array([0, 5, 7])
    highest, logit = (each.detach() for each in networks.both_logits(*bags_of(data, bags)))
    drawn = [parameter.detach() for parameter in networks.parameters]
    weights, biases = drawn[:4], drawn[4:]
    for fold, bag in enumerate(bags):
        x = torch.from_numpy(data.features[data.start[bag] : data.start[bag] + data.count[bag]])
        scores = [float(row @ weights[0][fold, :, 0] + biases[0][fold, 0, 0]) for row in x]
        query, value = (x @ weights[i][fold] + biases[i][fold] for i in (1, 2))
        attention = (query @ query[int(np.argmax(scores))] / 128**0.5).softmax(0)
        pooled = torch.stack([a * v for a, v in zip(attention, value, strict=True)]).sum(0)
        torch.testing.assert_close(highest[fold], torch.tensor(max(scores)))
        torch.testing.assert_close(logit[fold], pooled @ weights[3][fold, :, 0] + biases[3][fold, 0, 0])


@pytest.mark.parametrize("name", ["gated", "dsmil"])
def test_a_fold_trains_as_if_it_were_alone(data: MILSet, name: str) -> None:
    """The first fold sees one bag and waits for two steps of each epoch; beside another or alone it comes out equal."""
    recipe = Recipe(0.01, 0.1, 3)

    def build(folds: int) -> Any:
        if name == "gated":
            return FoldNetworks(folds, 4, "gated", recipe, torch.Generator().manual_seed(1))
        return DualStreams(4, torch.full((folds,), 0.7), recipe, torch.Generator().manual_seed(1))

    together, alone = build(2), build(1)
    for both, single in zip(together.parameters, alone.parameters, strict=True):
        single.data.copy_(both.data[:1])
    before = [parameter.detach().clone() for parameter in alone.parameters]
    bags = [np.array([0]), np.array([1, 4, 6])]
    features = torch.from_numpy(np.stack([data.features] * 2))
    for each, parts in ((together, bags), (alone, bags[:1])):
        for epoch in range(3):
            each.begin_epoch(epoch)
            run_epoch(each, data, features[: len(parts)], parts)
    for both, single, first in zip(together.parameters, alone.parameters, before, strict=True):
        rtol, atol = (1.3e-6, 1e-5) if name == "gated" else (0.05, 2e-3)  # see DualStreams on the count of steps
        torch.testing.assert_close(both[:1], single, rtol=rtol, atol=atol)
        assert single.numel() == 1 or not torch.equal(single, first)


def test_the_best_threshold_is_that_of_the_published_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        probability, label = rng.integers(0, 6, 12) / 6 + 0.01, rng.integers(0, 2, 12)
        label[:2] = 0, 1
        assert accuracy_at_best(probability, label) == pytest.approx(published_scores(label, probability).accuracy)
    assert accuracy_at_best(np.array([0.2, 0.6]), np.array([1, 1])) == 0.5


def test_features_are_scaled_by_training_bags_alone(data: MILSet) -> None:
    train = np.array([0, 1, 2])
    mean, scale = training_scale(data, train)
    rows = data.features[: data.count[:3].sum()]
    np.testing.assert_allclose((rows - mean) / scale, (rows - rows.mean(0)) / rows.std(0), atol=1e-5)


@pytest.mark.parametrize(("paper", "network"), [("ilse2018", "attention"), ("dsmil2021", "dsmil")])
def test_an_easy_set_is_learned_and_comes_out_the_same_again(data: MILSet, paper: str, network: str) -> None:
    build = PAPERS[paper].networks[network]
    first, again, other = (train_repetition(data, r, build, Recipe(5e-3, 0.0, 10), 0) for r in (0, 0, 1))
    assert first.accuracy.mean() >= 0.9
    assert (first.best_accuracy >= first.accuracy).all()
    assert (first.best_threshold_accuracy >= 0.75).all()
    np.testing.assert_array_equal(first.probability, again.probability)
    assert sorted(first.bag) == list(range(12))
    assert not np.array_equal(first.probability[np.argsort(first.bag)], other.probability[np.argsort(other.bag)])


def test_recipes_and_published_values() -> None:
    ilse, dsmil = PAPERS["ilse2018"], PAPERS["dsmil2021"]
    tiger = ilse.recipe("tiger")
    assert (tiger.lr, tiger.weight_decay, tiger.epochs, tiger.stated) == (1e-4, 1e-2, 100, True)
    assert not ilse.recipe("another").stated
    assert ilse.published["musk1", "gated"] == (0.900, 0.050)
    assert dsmil.published["fox", "dsmil"][0] == 0.729
    for each in PAPERS.values():
        assert {(name, network) for name in each.recipes for network in each.networks} == set(each.published)


def test_the_table_by_hand_and_going_on(data: MILSet, tmp_path: Path) -> None:
    tasks = plan_tasks(PAPERS["ilse2018"], data, ["attention"], 5, Recipe(5e-4, 5e-3, 1), 0, tmp_path)
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
    other = plan_tasks(PAPERS["ilse2018"], data, ["attention"], 5, Recipe(5e-4, 5e-3, 2), 0, tmp_path)
    with pytest.raises(ArtefactError, match="another recipe"):
        run_tasks(other, 0, lambda: None)


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
    options = ("ilse2018", "--data", path, "-o", tmp_path / "out", "--repeats", 1, "--network", "gated", "--epochs", 1)
    assert mhim(*options, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert mhim(*options) == 0
    text = (tmp_path / "out" / "ilse2018" / "musk1" / "results.md").read_text()
    assert "0.900 ± 0.050" in text
    assert "not verified" in text
    assert "changed from the recipe" in text  # one epoch is not the paper's recipe
    options = ("dsmil2021", "--data", path, "-o", tmp_path / "out", "--repeats", 1)
    assert mhim(*options, "--dropout", 0.5) == mhim(*options, "--network", "gated") == 1
    assert mhim(*options, "--epochs", 1) == 0
    text = (tmp_path / "out" / "dsmil2021" / "musk1" / "results.md").read_text()
    assert "0.932 ± 0.023" in text
    assert "let the TEST fold choose epoch and threshold" in text
    assert mhim("ilse2019", "--data", path, "-o", tmp_path) == 1
    assert mhim("ilse2018", "--data", tmp_path / "no.npz", "-o", tmp_path) == 1
    assert "no such file" in capsys.readouterr().err


def test_the_real_sets_can_be_read(shared: Path) -> None:
    folder = shared / "data" / "mil_benchmarks"
    if not folder.is_dir():
        pytest.skip("needs the classic sets beside the checkout")
    data = read_mil_set(folder / "musk1.npz")
    assert (len(data), int(data.label.sum()), data.features.shape) == (92, 47, (476, 166))


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.711, "-0.018, within ± 0.018"), (0.7104, "-0.019, outside ± 0.018"), (0.747, "+0.018, within ± 0.018")],
)
def test_a_published_value_comes_out_to_its_printed_digits(accuracy: float, expected: str) -> None:
    row = Row("fox", "dsmil", 5, 0.5, 0.03, 0.01, 0.6, accuracy, 0.5, (0.729, 0.018), selects_on_test=True)
    assert row.verdict == expected
