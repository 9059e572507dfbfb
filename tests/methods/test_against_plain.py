"""Four MHIM steps around gated AB-MIL and TransMIL equal those of a program written from the equations alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import plain_mhim
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mhim.methods import MHIM, Step, methods
from mhim.models import MILModel, models
from mhim.training.step import BagStep, adam

# bag sizes: below and above 7 x 7, squares and not, one multiple of the landmarks with the class token
SUBJECTS: dict[str, tuple[dict[str, Any], plain_mhim.Forward, float, float]] = {
    "gated": ({"name": "abmil", "dim": 8, "attention_dim": 4, "gated": True}, plain_mhim.gated_abmil, 0.02, 0.3),
    "transmil": (
        {"name": "transmil", "dim": 16, "heads": 4, "landmarks": 8},
        partial(plain_mhim.transmil, heads=4, landmarks=8),
        0.05,
        0.0,
    ),
    "transmil-low": (
        {"name": "transmil", "dim": 16, "heads": 4, "landmarks": 8},
        partial(plain_mhim.transmil, heads=4, landmarks=8),
        0.03,
        0.7,
    ),
}
SIZES = ((60, 1), (23, 0), (64, 0), (7, 1))


def model_of(options: dict[str, Any], seed: int) -> MILModel:
    """In double precision and without dropout, its class token and biases away from their starts."""
    torch.manual_seed(seed)
    model = models.build(models.parse(options), 5, 2).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.2)
    return model


def copied(model: MILModel) -> plain_mhim.Parameters:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_four_steps_equal_the_plain_program(name: str) -> None:
    """Kept sets, both losses, logits, every gradient's and parameter's norm; then every number of both networks."""
    options, forward, high, low = SUBJECTS[name]
    teacher, student = model_of(options, 1), model_of(options, 2)
    plain_teacher, plain_student = copied(teacher), copied(student)
    source = torch.Generator().manual_seed(0)
    bags = [(torch.randn(size, 5, generator=source, dtype=torch.float64), label) for size, label in SIZES]
    told = plain_mhim.simulate(forward, plain_teacher, plain_student, bags, high, low, 0.1, 0.9, 2e-4, 1e-5)
    config = methods.parse(
        {
            "name": "mhim-v1",
            "mask": {
                "name": "l-ham",
                "mask_ratio_high": high,
                "mask_ratio_low": low,
                "high_candidate_factor": 1.0,
                "min_instances": 2,
            },
            "student_init": "none",
            "consistency_weight": 0.1,
            "momentum": 0.9,
            "momentum_schedule": "cosine",
        }
    )
    method = methods.build(config, student, teacher)
    assert isinstance(method, MHIM)
    stepping = BagStep(method, adam(method, 2e-4, 1e-5))
    for index, ((bag, label), expected) in enumerate(zip(bags, told, strict=True)):
        now = Step(index, len(bags), torch.Generator().manual_seed(0))
        (result,) = stepping.take([bag], [torch.tensor(label)], now)
        assert result.mining is not None
        assert result.mining.selection.keep_index.tolist() == expected.kept
        assert float(result.terms["classification"].detach()) == pytest.approx(expected.classification, rel=1e-9)
        assert float(result.terms["consistency"].detach()) == pytest.approx(0.1 * expected.consistency, rel=1e-9)
        assert_close(result.mining.student.logits.detach(), expected.logits, rtol=1e-9, atol=1e-11)
        for role, network, norms in (
            ("student", method.model, expected.student),
            ("teacher", method.teacher, expected.teacher),
        ):
            for key, value in network.named_parameters():
                assert float(value.detach().norm()) == pytest.approx(norms[key], rel=1e-9), f"{role} {key}"
        for key, value in method.model.named_parameters():
            assert value.grad is not None
            assert float(value.grad.norm()) == pytest.approx(expected.gradients[key], rel=1e-8, abs=1e-12), key
    for network, plain in ((method.model, plain_student), (method.teacher, plain_teacher)):
        for key, value in network.named_parameters():
            assert_close(value.detach(), plain[key], rtol=1e-8, atol=1e-11, msg=key)
