"""The training loop: which epoch is kept, when it stops, what it draws, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mhim.training.fit as fit_module
from mhim.cohort import read_cohort
from mhim.config import validate
from mhim.errors import FeatureError
from mhim.methods import Method, methods
from mhim.metrics import Predictions
from mhim.models import models
from mhim.training.data import BagSet, BagStore
from mhim.training.fit import Epoch, FitResult, TrainConfig, fit, predict

Scores = list[tuple[float | None, float]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_method(seed: int = 0, in_dim: int = 6) -> Method:
    torch.manual_seed(seed)
    model = models.build(models.parse({"name": "abmil", "dim": 8, "attention_dim": 4}), in_dim, 2)
    return methods.build(methods.parse("supervised"), model, None)


def training(**options: Any) -> TrainConfig:
    return validate(TrainConfig, {"device": "cpu", "lr": 1e-3, **options}, "test")


def parts(folder: Path) -> tuple[BagSet, BagSet]:
    store = BagStore(folder / "features", read_cohort(folder / "cohort.csv"))
    return store.part([f"c{i:02d}" for i in range(8)]), store.part([f"c{i:02d}" for i in range(8, 12)])


def run(folder: Path, seed: int = 0, **options: Any) -> FitResult:
    train, val = parts(folder)
    return fit(a_method(), train, val, training(**options), torch.Generator().manual_seed(seed))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, cohort_folder: Path) -> Callable[..., FitResult]:
    """``fit`` where epoch i gives the i-th (AUROC, loss) on validation, and sets the first bias to i."""

    def play(scores: Scores, **options: Any) -> FitResult:
        method = a_method()
        bias = method.model.get_parameter("classifier.bias")
        state = {"epoch": 0}

        def one_epoch(*arguments: Any) -> tuple[dict[str, float], dict[str, float]]:
            arguments[0].optimiser.step()
            with torch.no_grad():
                bias.fill_(state["epoch"])
            return {}, {}

        def score(*_: Any) -> tuple[Any, float]:
            found = scores[state["epoch"]]
            state["epoch"] += 1
            return found[0], found[1]

        monkeypatch.setattr(fit_module, "train_epoch", one_epoch)
        monkeypatch.setattr(fit_module, "predict", score)
        monkeypatch.setattr(fit_module.CLASSIFY, "score", lambda area: area)
        train, val = parts(cohort_folder)
        options = {"epochs": len(scores), "min_epochs": 0, "patience": 100, **options}
        return fit(method, train, val, training(**options), torch.Generator().manual_seed(0))

    return play


BEST = {
    "the highest AUROC": ([(0.6, 0.1), (0.9, 0.5), (0.8, 0.2)], {}, 1),
    "the lowest loss among equal AUROCs": ([(0.9, 0.5), (0.9, 0.3), (0.9, 0.4)], {}, 1),
    "the first among equals": ([(0.9, 0.3), (0.9, 0.3), (0.9, 0.3)], {}, 0),
    "the lowest loss when that is asked for": ([(0.9, 0.5), (0.5, 0.2), (0.9, 0.4)], {"select_by": "loss"}, 1),
    "the lowest loss when validation has one class": ([(None, 0.5), (None, 0.2), (None, 0.4)], {}, 1),
    "the last when it keeps rising": ([(0.5, 0.5), (0.6, 0.5), (0.7, 0.5)], {}, 2),
}


@pytest.mark.parametrize(("scores", "options", "best"), BEST.values(), ids=BEST)
def test_the_kept_epoch_is(
    scores: Scores, options: dict[str, Any], best: int, scripted: Callable[..., FitResult]
) -> None:
    result = scripted(scores, **options)
    assert result.best_epoch == best
    assert result.state["classifier.bias"].tolist() == [best, best]
    assert len(result.history) == 3


STOPS = {
    "patience epochs after the best": ({"patience": 2}, 3),
    "not before min_epochs": ({"patience": 2, "min_epochs": 5}, 5),
    "at the end of the schedule": ({"patience": 50}, 7),
    "patience one, at the first epoch that is no better": ({"patience": 1}, 2),
}


@pytest.mark.parametrize(("options", "epochs"), STOPS.values(), ids=STOPS)
def test_training_stops(options: dict[str, Any], epochs: int, scripted: Callable[..., FitResult]) -> None:
    result = scripted([(0.9, 0.5)] + [(0.8, 0.5)] * 6, **options)
    assert len(result.history) == epochs
    assert result.best_epoch == 0


def test_a_better_loss_at_the_same_auroc_restarts_the_patience(scripted: Callable[..., FitResult]) -> None:
    scores: Scores = [(0.9, 0.5), (0.8, 0.1), (0.9, 0.4), (0.8, 0.1), (0.8, 0.1), (0.8, 0.1)]
    result = scripted(scores, patience=2)
    assert (len(result.history), result.best_epoch) == (5, 2)


def test_the_learning_rate_is_half_a_cosine_or_constant(scripted: Callable[..., FitResult]) -> None:
    scores: Scores = [(0.5, 0.5)] * 8
    falling = [epoch.lr for epoch in scripted(scores, lr=0.01).history]
    assert falling == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    steady = [epoch.lr for epoch in scripted(scores, lr=0.01, lr_schedule="constant").history]
    assert steady == pytest.approx([0.01] * 8)


def test_the_history_is_one_flat_record_per_epoch() -> None:
    epoch = Epoch(2, 0.1, {"classification": 0.5}, {"kept_share": 0.9}, 0.4, None)
    assert epoch.row() == {
        "epoch": 2,
        "lr": 0.1,
        "train_classification": 0.5,
        "kept_share": 0.9,
        "val_loss": 0.4,
        "val_auroc": None,
    }


def test_equal_seeds_give_equal_weights_and_history(cohort_folder: Path) -> None:
    first, second = run(cohort_folder, epochs=2), run(cohort_folder, epochs=2)
    assert first.history == second.history
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


def test_another_seed_gives_another_training(cohort_folder: Path) -> None:
    """Same initial weights, other bag order and dropout."""
    assert run(cohort_folder, epochs=2).history != run(cohort_folder, seed=1, epochs=2).history


def test_training_leaves_the_global_random_state_as_it_was(cohort_folder: Path) -> None:
    method, (train, val) = a_method(), parts(cohort_folder)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  (the global one)
    fit(method, train, val, training(epochs=1), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_training_does_not_depend_on_the_global_random_state(cohort_folder: Path) -> None:
    first = run(cohort_folder, epochs=1)
    train, val = parts(cohort_folder)
    method = a_method()
    torch.manual_seed(12345)
    assert fit(method, train, val, training(epochs=1), torch.Generator().manual_seed(0)).history == first.history


def test_the_loss_falls(cohort_folder: Path) -> None:
    history = run(cohort_folder, epochs=12, lr=3e-2, lr_schedule="constant").history
    assert history[-1].terms["classification"] < 0.7 * history[0].terms["classification"]


def test_every_epoch_is_reported_as_it_ends(cohort_folder: Path) -> None:
    train, val = parts(cohort_folder)
    seen: list[Epoch] = []
    result = fit(a_method(), train, val, training(epochs=2), torch.Generator().manual_seed(0), seen.append)
    assert tuple(seen) == result.history


def test_predictions_are_made_without_dropout_and_in_table_order(cohort_folder: Path) -> None:
    method, (_, val) = a_method(), parts(cohort_folder)
    method.train()
    first, loss = predict(method.model, val)
    again, _ = predict(method.model, val)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    np.testing.assert_allclose(first.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert first.case_id.tolist() == ["c08", "c09", "c10", "c11"]
    assert first.y_true.tolist() == [0, 1, 0, 1]
    assert loss == pytest.approx(-np.log(first.probabilities[np.arange(4), first.y_true]).mean(), rel=1e-5)
    assert isinstance(first, Predictions)


def test_a_loss_that_is_not_finite_names_the_slide(cohort_folder: Path) -> None:
    method, (train, val) = a_method(), parts(cohort_folder)
    step, count = method.step, iter(range(100))

    def diverging(*arguments: Any) -> Any:
        result = step(*arguments)
        if next(count) == 3:
            result.terms["classification"] = result.terms["classification"] * float("nan")  # pyright: ignore
        return result

    method.step = diverging
    fourth = torch.randperm(8, generator=_after_seeding()).tolist()[3]
    with pytest.raises(
        FeatureError, match=rf"slide s{fourth:02d}_0: the training loss is not finite in epoch 0; lower"
    ):
        fit(method, train, val, training(epochs=1), torch.Generator().manual_seed(0))


def _after_seeding() -> torch.Generator:
    """The generator as the first epoch finds it: one draw has seeded dropout."""
    generator = torch.Generator().manual_seed(0)
    torch.randint(1 << 62, (1,), generator=generator)
    return generator


def test_predictions_that_are_not_finite_name_the_slide(cohort_folder: Path) -> None:
    method, (_, val) = a_method(), parts(cohort_folder)
    with torch.no_grad():
        method.model.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(FeatureError, match="slide s08_0: the prediction is not finite"):
        predict(method.model, val)
