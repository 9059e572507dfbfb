"""MHIM v1: closed forms of momentum and consistency, roles of teacher and student, the reference traces."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given_mask import Given

from mhim.errors import CheckpointError, ConfigError
from mhim.methods import MHIM, Step, methods
from mhim.methods.losses import consistency_loss
from mhim.methods.mhim import momentum_at, teacher_salience
from mhim.models import MILModel, MILOutput, models
from mhim.weights import import_checkpoint


def small_model(seed: int = 0, name: str = "abmil", **options: Any) -> MILModel:
    torch.manual_seed(seed)
    return models.build(models.parse({"name": name, "dim": 8, "attention_dim": 4, **options}), 5, 2)


def build(model: MILModel, baseline: MILModel | None, **options: Any) -> MHIM:
    built = methods.build(methods.parse({"name": "mhim-v1", **options}), model, baseline)
    assert isinstance(built, MHIM)
    return built


def step(index: int = 0, total: int = 10, seed: int = 0) -> Step:
    return Step(index, total, torch.Generator().manual_seed(seed))


def test_consistency_equals_the_reference_numbers() -> None:
    """Two rows of eight numbers: the mean over rows is the reference program's 1.90671."""
    example = json.loads((Path(__file__).parents[1] / "golden" / "consistency.json").read_text())
    teacher, student = torch.tensor(example["teacher"]), torch.tensor(example["student"])
    loss = consistency_loss(teacher, student, example["temp_t"], example["temp_s"])
    assert float(loss) == pytest.approx(example["mean"], rel=1e-6)
    rows = [float(consistency_loss(t, s, 0.1, 1.0)) for t, s in zip(teacher, student, strict=True)]
    assert rows == pytest.approx(example["per_row"], rel=1e-6)


def test_consistency_takes_no_gradient_on_the_teachers_side() -> None:
    teacher = torch.randn(4, requires_grad=True)
    student = torch.randn(4, requires_grad=True)
    consistency_loss(teacher, student, 0.1, 1.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_momentum_is_constant_or_half_a_cosine_to_one() -> None:
    assert momentum_at(0.9999, "constant", 0.7) == 0.9999
    assert momentum_at(0.9, "cosine", 0.25) == pytest.approx(0.9146446609406726, rel=1e-14)
    assert momentum_at(0.9999, "cosine", 265 / 53200) == pytest.approx(0.9999000061220853, rel=1e-14)


def test_teacher_follows_the_student_by_the_closed_form() -> None:
    """After k steps with a fixed student: theta_t = m^k start + (1 - m^k) student."""
    method = build(small_model(1), small_model(2), momentum=0.9)
    start = [parameter.clone() for parameter in method.teacher.parameters()]
    for index in range(7):
        method.after_step(step(index))
    for now, old, student in zip(method.teacher.parameters(), start, method.model.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9**7 * old + (1 - 0.9**7) * student.detach(), rtol=1e-5, atol=1e-6)


def test_teacher_starts_from_the_baseline_and_the_student_takes_its_projection() -> None:
    model, baseline = small_model(1), small_model(2)
    own = copy.deepcopy(model.state_dict())
    method = build(model, baseline)
    for name, value in baseline.state_dict().items():
        assert torch.equal(method.teacher.state_dict()[name], value)
        expected = value if name.startswith("projection") else own[name]
        assert torch.equal(method.model.state_dict()[name], expected)


def test_only_the_student_is_trained_and_deployed() -> None:
    method = build(small_model(1), small_model(2))
    trained = {id(parameter) for parameter in method.trainable()}
    assert trained == {id(parameter) for parameter in method.model.parameters()}
    result = method.step(torch.randn(30, 5), torch.tensor(1), step())
    result.loss.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


def test_teacher_mode_is_a_named_choice() -> None:
    assert not build(small_model(1), small_model(2)).teacher.training
    assert build(small_model(1), small_model(2), teacher_mode="train").teacher.training
    assert not build(small_model(1), small_model(2), teacher_mode="train").eval().teacher.training


def test_masking_before_the_projection_is_masking_tokens() -> None:
    """The student's result on kept features is its result on kept tokens of the whole bag."""
    model = small_model(1).eval()
    features, keep = torch.randn(40, 5), torch.tensor([0, 3, 4, 17, 39])
    torch.testing.assert_close(model(features[keep]).logits, model.aggregate(model.project(features)[keep]).logits)


def test_without_teacher_init_and_student_init_no_baseline_is_needed() -> None:
    free = methods.parse({"name": "mhim-v1", "teacher_init": "student", "student_init": "none"})
    assert not MHIM.needs_baseline(free)
    method = methods.build(free, small_model(1), None)
    assert isinstance(method, MHIM)
    assert torch.equal(method.teacher.classifier.weight, method.model.classifier.weight)


def test_a_missing_or_foreign_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="plain baseline of the same fold"):
        build(small_model(1), None)
    with pytest.raises(CheckpointError, match="another architecture: tensor 'attention"):
        build(small_model(1), small_model(2, gated=True))


@pytest.mark.parametrize(
    ("score", "expected"),
    [("model", "attention"), ("attention", "attention"), ("instance-scores", "scores"), ("class-probability", "class")],
)
def test_the_teachers_score_is_a_choice(score: str, expected: str) -> None:
    """H is the top of the chosen score."""
    method = build(small_model(1), small_model(2), teacher_score=score, mask={"name": "ham", "mask_ratio_high": 0.1})
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    seen = method.teacher(features)
    values = {"attention": seen.attention[0], "scores": seen.instance_scores.amax(-1), "class": seen.class_salience[0]}
    mining = method.step(features, torch.tensor(1), step()).mining
    assert mining is not None
    assert set(mining.selection.high.nonzero()[:, 0].tolist()) == set(values[expected].topk(3).indices.tolist())


def test_a_score_that_the_aggregator_lacks_is_refused() -> None:
    seen = dataclasses.replace(small_model()(torch.randn(4, 5)), instance_scores=None, attention=None)
    for score in ("attention", "instance-scores"):
        with pytest.raises(ConfigError, match="which this aggregator does not have"):
            teacher_salience(seen, score)


def test_a_teacher_without_memory_is_the_student() -> None:
    """Momentum 0 from the student's own start: self-teaching, bit by bit; momentum 1: never updated."""
    free = {"teacher_init": "student", "student_init": "none"}
    method = build(small_model(1), None, momentum=0.0, **free)
    frozen = build(small_model(1), small_model(2), momentum=1.0)
    before = copy.deepcopy(frozen.teacher.state_dict())
    for each in (method, frozen):
        optimiser = torch.optim.Adam(each.trainable(), lr=0.01)
        for index in range(3):
            each.step(torch.randn(30, 5), torch.tensor(1), step(index)).loss.backward()
            optimiser.step()
            each.after_step(step(index))
    for name, value in method.model.state_dict().items():
        assert torch.equal(method.teacher.state_dict()[name], value)
    assert all(torch.equal(value, before[name]) for name, value in frozen.teacher.state_dict().items())


def test_a_schedule_needs_its_total() -> None:
    with pytest.raises(ConfigError, match="total number of training steps"):
        Step(0, 0, torch.Generator())
    with pytest.raises(ConfigError, match="outside the schedule of 5"):
        Step(5, 5, torch.Generator())


TRACES = ["abmil_ham", "gated_lham", "dsmil_ham", "transmil_ham"]


@pytest.mark.parametrize("name", TRACES)
def test_four_training_steps_equal_the_reference_program(shared: Path, name: str) -> None:
    """Losses, kept sets, gradient norms, parameter norms and final logits to 1e-5 relative."""
    golden = shared / "golden"
    records = json.loads((golden / "outputs" / "train_steps.json").read_text())
    if name not in records:
        pytest.skip(f"the trace {name} is kept for independent checks")
    record, arrays = records[name], dict(np.load(golden / "outputs" / "train_steps.npz"))
    teacher = without_dropout(import_checkpoint(golden / "checkpoints" / f"{record['checkpoint']}.safetensors").model)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for key, value in student.named_parameters():
            if not key.startswith("projection"):
                value.mul_(0.5)
    mask: dict[str, Any] = {"name": "l-ham", "high_candidate_factor": 1.0}
    mask |= {"mask_ratio_high": record["mask_ratio_h"], "mask_ratio_low": record["mask_ratio_l"]}
    method = build(
        student,
        teacher,
        mask=mask,
        student_init="none",
        consistency_weight=record["cl_alpha"],
        momentum=0.9,
        momentum_schedule="cosine",
    )
    if name == "transmil_ham":  # votes tie, and the reference program breaks ties in its own way
        kept = [tuple(arrays[f"{name}/step{index}/kept_sorted"].tolist()) for index in range(len(record["steps"]))]
        method.strategy = Given(Given.Config(keep=tuple(kept)))
    check_trace(method, record["steps"], arrays, name, dict(np.load(golden / "inputs" / "bags.npz")))


def without_dropout(model: MILModel) -> MILModel:
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return model


def norms(named: Any) -> list[float]:
    return sorted(float(value.detach().double().norm()) for value in named)


def check_trace(method: MHIM, steps: list[Any], arrays: dict[str, Any], name: str, bags: dict[str, Any]) -> None:
    optimiser = torch.optim.Adam(method.trainable(), lr=2e-4, weight_decay=1e-5)
    for index, expected in enumerate(steps):
        features = torch.from_numpy(bags[f"codes_N{expected['N']}"].astype(np.float32) / 512)
        now = step(index, len(steps))
        kept = method.strategy.select(method.teacher(features).salience, now.progress, now.generator).keep_index
        assert kept.tolist() == arrays[f"{name}/step{index}/kept_sorted"].tolist()
        result = method.step(features, torch.tensor(expected["label"]), now)
        assert float(result.loss.detach()) == pytest.approx(expected["total"], rel=1e-5)
        assert result.mining is not None
        expected_logits = arrays[f"{name}/step{index}/student_logits"]
        np.testing.assert_allclose(logits_of(result.mining.student), expected_logits, rtol=1e-5, atol=1e-6)
        assert float(result.terms["consistency"].detach()) == pytest.approx(0.1 * expected["con_loss"], rel=1e-5)
        optimiser.zero_grad()
        result.loss.backward()
        gradients = [p.grad for p in method.model.parameters() if p.grad is not None]
        published = [norm for norm in expected["grad_norms"].values() if norm is not None]
        assert norms(gradients) == pytest.approx(sorted(published), rel=1e-5)
        optimiser.step()
        method.after_step(now)
        assert norms(method.model.parameters()) == pytest.approx(
            sorted(expected["student_param_norms"].values()), rel=1e-5
        )
        assert norms(method.teacher.parameters()) == pytest.approx(
            sorted(expected["teacher_param_norms"].values()), rel=1e-5
        )
    features = torch.from_numpy(bags["codes_N255"].astype(np.float32) / 512)
    for role, model in (("student", method.model), ("teacher", method.teacher)):
        with torch.no_grad():
            found = logits_of(model.eval()(features))
        np.testing.assert_allclose(found, arrays[f"{name}/after/{role}_eval_logits_N255"], rtol=1e-5, atol=1e-6)


def logits_of(output: MILOutput) -> np.ndarray:
    """(1, C), for DSMIL the rows of the bag and of the max stream."""
    rows = [output.logits, *([output.extras["max_logits"]] if "max_logits" in output.extras else [])]
    return torch.stack(rows).detach().numpy()
