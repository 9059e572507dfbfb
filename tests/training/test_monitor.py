"""The numbers about mining: by hand on small selections, and beside a training that they do not touch."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from mhim.masks import MaskSelection
from mhim.methods import Mining, Step, methods
from mhim.models import MILOutput, models
from mhim.training.monitor import MiningMonitor
from mhim.training.runs import open_run
from small_runs import SMALL_TRAINING, small_plan, train_all

LABEL = torch.tensor(1)


def selection(size: int, high: list[int], low: list[int] = [], random: list[int] = []) -> MaskSelection:  # noqa: B006
    def members(index: list[int]) -> torch.Tensor:
        return torch.isin(torch.arange(size), torch.tensor(index, dtype=torch.int64))

    sets = [members(index) for index in (high, low, random)]
    return MaskSelection((~(sets[0] | sets[1] | sets[2])).nonzero()[:, 0], *sets)


def output(probability: list[float], attention: list[float]) -> MILOutput:
    """A result whose instances have these probabilities of class 1."""
    positive = torch.tensor(probability)
    return MILOutput(
        logits=torch.zeros(2),
        probabilities=torch.full((2,), 0.5),
        attention=torch.tensor([attention]),
        instance_scores=None,
        bag_embedding=torch.zeros(3),
        instance_probabilities=torch.stack([1 - positive, positive], dim=1),
    )


def mining(
    chosen: MaskSelection, attention: list[float], student: list[float], probability: list[float] | None = None
) -> Mining:
    seen = output(probability or [0.5] * len(attention), attention)
    salience = torch.tensor([attention])
    return Mining(chosen, salience, seen, chosen.keep_index, seen, torch.tensor([student]))


def test_by_hand() -> None:
    """Six instances; 0 and 1 masked as salient, 5 at random; tumour is 0, 2 and 3."""
    monitor = MiningMonitor(lambda slide_id: torch.tensor([1.0, 0.0, 0.5, 0.9, 0.4, 0.0]))
    chosen = selection(6, high=[0, 1], random=[5])
    probability = [0.8, 0.5, 0.25, 0.5, 0.2, 0.1]
    monitor.observe("a", LABEL, mining(chosen, [0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0], probability))
    numbers = monitor.finish_epoch()
    expected = {
        "mask_overlap": None,
        "high_overlap": None,
        "attention_entropy": math.log(2) / math.log(6),
        "loss_kept": -np.mean(np.log([0.25, 0.5, 0.2])),
        "loss_masked": -np.mean(np.log([0.8, 0.5])),
        "high_precision": 1 / 2,
        "high_recall": 1 / 3,
        "tumour_kept": 2 / 3,
        "tumour_loss_kept": -np.mean(np.log([0.25, 0.5])),
        "tumour_loss_masked": -np.log(0.8),
    }
    for name, value in expected.items():
        assert numbers[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


def test_overlap_is_jaccard_with_the_same_slide_one_epoch_before() -> None:
    monitor = MiningMonitor()
    uniform = [1 / 8] * 8

    def epoch(**high: list[int]) -> dict[str, float | None]:
        for slide_id, index in high.items():
            monitor.observe(slide_id, LABEL, mining(selection(8, index, low=[7]), uniform, uniform))
        return monitor.finish_epoch()

    assert epoch(a=[0, 1], b=[4])["high_overlap"] is None
    second = epoch(a=[1, 2], b=[4])  # a: 1 of 3, with the low set 2 of 4; b: the same
    assert second["high_overlap"] == pytest.approx((1 / 3 + 1) / 2)
    assert second["mask_overlap"] == pytest.approx((2 / 4 + 1) / 2)
    assert epoch(a=[1, 2], b=[5])["high_overlap"] == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize(
    ("student", "agreement"), [([1.0, 2.0, 3.0, 4.0], 1.0), ([4.0, 3.0, 2.0, 1.0], -1.0), ([1.0, 3.0, 2.0, 4.0], 0.8)]
)
def test_agreement_is_the_rank_correlation_on_what_the_student_saw(student: list[float], agreement: float) -> None:
    """Recycled tokens behind the shown instances do not count."""
    monitor = MiningMonitor()
    chosen = selection(5, high=[4])
    monitor.observe("a", LABEL, mining(chosen, [0.0, 0.1, 0.2, 0.3, 0.4], [*student, 99.0, -99.0]))
    assert monitor.finish_epoch()["teacher_agreement"] == pytest.approx(agreement)


@pytest.mark.parametrize(("attention", "entropy"), [([0.25] * 4, 1.0), ([1.0, 0, 0, 0], 0.0), ([3.0, 3.0, -1, 0], 0.5)])
def test_entropy_of_even_peaked_and_approximated_attention(attention: list[float], entropy: float) -> None:
    monitor = MiningMonitor()
    monitor.observe("a", LABEL, mining(selection(4, [0]), attention, [1.0, 2.0, 3.0]))
    assert monitor.finish_epoch()["attention_entropy"] == pytest.approx(entropy, abs=1e-6)


def test_slides_without_tumour_do_not_count_for_truth() -> None:
    truths = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.zeros(3), "c": None}
    monitor = MiningMonitor(truths.get)
    for slide_id in truths:
        monitor.observe(slide_id, LABEL, mining(selection(3, [0]), [0.5, 0.3, 0.2], [1.0, 2.0]))
    numbers = monitor.finish_epoch()
    assert numbers["high_precision"] == 1.0
    assert numbers["tumour_kept"] == 0.0
    assert numbers["tumour_loss_kept"] is None


def test_a_shuffled_bag_is_compared_in_its_own_order() -> None:
    """The method saw instances 2, 0, 1: its first is the bag's third."""
    monitor = MiningMonitor(lambda slide_id: torch.tensor([0.0, 0.0, 1.0]))
    order = torch.tensor([2, 0, 1])
    monitor.observe("a", LABEL, mining(selection(3, [0]), [0.5, 0.3, 0.2], [1.0, 2.0]), order)
    assert monitor.finish_epoch()["high_recall"] == 1.0
    monitor.observe("a", LABEL, mining(selection(3, [2]), [0.5, 0.3, 0.2], [1.0, 2.0]))
    assert monitor.finish_epoch()["high_overlap"] == 1.0


def test_a_part_of_a_bag_is_compared_where_both_epochs_saw_it() -> None:
    """Instances 1, 2, 4, 5 are seen, then 0, 1, 4. Salient are 1 and 4, then 0 and 1; 1 and 4 were seen twice."""
    monitor = MiningMonitor(lambda slide_id: torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0]))
    first = mining(selection(4, [0, 2]), [0.4, 0.3, 0.2, 0.1], [1.0, 2.0])
    monitor.observe("a", LABEL, first, torch.tensor([1, 2, 4, 5]), 6)
    assert monitor.finish_epoch()["high_recall"] == pytest.approx(2 / 3)
    monitor.observe("a", LABEL, mining(selection(3, [0, 1]), [0.5, 0.3, 0.2], [1.0]), torch.tensor([0, 1, 4]), 6)
    numbers = monitor.finish_epoch()
    assert numbers["high_overlap"] == pytest.approx(1 / 2)
    assert numbers["high_recall"] == pytest.approx(1 / 2)


def test_a_bag_of_one_has_no_agreement_and_no_entropy() -> None:
    monitor = MiningMonitor()
    monitor.observe("a", LABEL, mining(selection(1, []), [1.0], [1.0]))
    numbers = monitor.finish_epoch()
    assert numbers["teacher_agreement"] is None
    assert numbers["attention_entropy"] is None
    assert numbers["loss_masked"] is None


MHIM = {"method": {"name": "mhim-v1", "momentum": 0.9}}


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_the_history_has_the_numbers_and_training_does_not_feel_them(cohort_folder: Path, tmp_path: Path) -> None:
    """Watched or not, with true, inverted or no instance truth: the same weights, byte by byte."""
    plan = small_plan(cohort_folder, **MHIM)
    run = train_all(plan, tmp_path / "watched")
    table = run.history(0)
    assert list(table["epoch"]) == [0, 1, 2]
    assert table["mask_overlap"].isna().tolist() == [True, False, False]
    inside = ["kept_share", "mask_overlap", "high_overlap", "attention_entropy", "high_precision", "high_recall"]
    for name in [*inside, "tumour_kept"]:
        values = table[name].dropna()
        assert ((values >= 0) & (values <= 1)).all(), name
    assert table["teacher_agreement"].between(-1, 1).all()
    assert {"loss_kept", "loss_masked", "tumour_loss_kept", "tumour_loss_masked"} <= set(table)
    unwatched = small_plan(cohort_folder, **MHIM, train={**SMALL_TRAINING, "watch": False})
    assert unwatched.identity == plan.identity
    train_all(unwatched, tmp_path / "unwatched")
    assert "mask_overlap" not in pd.read_csv(tmp_path / "unwatched" / "fold_0" / "history.csv")
    for path in (cohort_folder / "features").iterdir():
        with h5py.File(path, "r+") as file:
            file["annotation_fraction"][:] = 1 - file["annotation_fraction"][:]
    inverted = small_plan(cohort_folder, **MHIM)
    other = train_all(inverted, tmp_path / "inverted")
    assert not np.allclose(other.history(0)["high_recall"], table["high_recall"])
    tensors = [weights_of(run.path / "fold_0" / "model.safetensors") for run in (run, other)]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert weights(tmp_path / "watched") == weights(tmp_path / "unwatched")


def test_a_row_of_the_history_recomputed_from_the_files(cohort_folder: Path, tmp_path: Path) -> None:
    """A teacher that is never updated and a mask without chance: every epoch masks the baseline's top tenth."""
    mask = {"name": "ham", "mask_ratio_high": 0.1, "high_decay": "none"}
    plan = small_plan(cohort_folder, method={"name": "mhim-v1", "momentum": 1.0, "mask": mask})
    run = train_all(plan, tmp_path / "run")
    model = open_run(run.path / "baseline").model(0)
    rows: list[dict[str, float]] = []
    labels = plan.cohort.case_labels()
    for slide in plan.cohort.of_cases(plan.splits.folds[0].train):
        with h5py.File(cohort_folder / "features" / f"{slide.slide_id}.h5") as file:
            features, tumour = file["features"][:], file["annotation_fraction"][:] >= 0.5
        with torch.no_grad():
            weights = {name: value.double() for name, value in model.state_dict().items()}
            z = torch.relu(
                torch.from_numpy(features).double() @ weights["projection.0.weight"].T + weights["projection.0.bias"]
            )
            e = (torch.relu(z @ weights["attention.value.weight"].T) @ weights["attention.score.weight"].T)[:, 0]
            a = e.softmax(0)
            p = ((a[:, None] * z) @ weights["classifier.weight"].T).softmax(1)
        top = np.zeros(len(features), dtype=bool)
        top[np.argsort(-a.numpy(), kind="stable")[: math.ceil(len(features) * 0.1)]] = True
        loss = -np.log(p[:, labels[slide.case_id]].numpy())
        row = {
            "kept_share": (~top).mean(),
            "attention_entropy": float(-(a * a.log()).sum()) / math.log(len(features)),
            "loss_kept": loss[~top].mean(),
            "loss_masked": loss[top].mean(),
        }
        if tumour.any():
            row |= {
                "high_precision": tumour[top].mean(),
                "high_recall": top[tumour].mean(),
                "tumour_kept": (~top)[tumour].mean(),
                "tumour_loss_kept": loss[tumour & ~top].mean(),
                "tumour_loss_masked": loss[tumour & top].mean() if (tumour & top).any() else math.nan,
            }
        rows.append(row)
    expected = pd.DataFrame(rows).mean()
    history = run.history(0)
    for name, value in expected.items():
        assert history[name].tolist() == pytest.approx([value] * 3, abs=2e-6), name
    assert history["high_overlap"].tolist()[1:] == [1.0, 1.0]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_a_run_of_mhim_v2_deploys_the_baselines_tensors_alone(cohort_folder: Path, tmp_path: Path) -> None:
    method = {"name": "mhim-v2", "keep_ratio": 0.5, "recycle_heads": 2, "recycle_head_dim": 4}
    plan = small_plan(cohort_folder, method=method)
    for out in ("first", "second"):
        train_all(plan, tmp_path / out)
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    for fold in ("fold_0", "fold_1"):
        deployed = weights_of(tmp_path / "first" / fold / "model.safetensors")
        plain = weights_of(tmp_path / "first" / "baseline" / fold / "model.safetensors")
        assert {key: value.shape for key, value in deployed.items()} == {k: v.shape for k, v in plain.items()}
    assert "high_overlap" in pd.read_csv(tmp_path / "first" / "fold_0" / "history.csv")
    assert "high_overlap" not in pd.read_csv(tmp_path / "first" / "baseline" / "fold_0" / "history.csv")


def test_epochs_before_choose_from_are_not_chosen(cohort_folder: Path, tmp_path: Path) -> None:
    plan = small_plan(cohort_folder, train={**SMALL_TRAINING, "choose_from": 2})
    assert train_all(plan, tmp_path / "late").fold_info(0)["best_epoch"] == 2


@pytest.mark.parametrize("method", ["mhim-v1", "mhim-v2"])
@pytest.mark.parametrize("name", sorted(models))
def test_every_aggregator_can_be_watched(name: str, method: str) -> None:
    """Bags of 1, 2 and 30 instances: every number is None or finite."""
    torch.manual_seed(0)
    model, baseline = (models.build(models.parse({"name": name, "dim": 8}), 5, 3) for _ in range(2))
    mined = methods.build(methods.parse(method), model, baseline)
    monitor = MiningMonitor(lambda slide_id: torch.ones(int(slide_id)))
    for size in (1, 2, 30):
        step = Step(0, 3, torch.Generator().manual_seed(0))
        result = mined.step(torch.randn(size, 5), torch.tensor(2), step)
        assert result.mining is not None
        monitor.observe(str(size), torch.tensor(2), result.mining)
    numbers = monitor.finish_epoch()
    assert len(numbers) == 11
    assert all(value is None or math.isfinite(value) for value in numbers.values())
