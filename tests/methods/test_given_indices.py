"""MHIM steps with given kept instances: the whole step written out by hand, for gated AB-MIL and TransMIL."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from given_mask import Given
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mhim.methods import MHIM, Step, methods
from mhim.models import MILModel, models

KEEP = ((0, 2, 3, 7, 8, 11, 15, 19), (1, 2, 4, 9), (0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
SUBJECTS = {
    "gated": {"name": "abmil", "dim": 8, "attention_dim": 4, "gated": True},
    "transmil": {"name": "transmil", "dim": 8, "heads": 2, "landmarks": 4},
    "dsmil": {"name": "dsmil", "dim": 8, "query_dim": 4},
}


def model_of(options: dict[str, Any], seed: int) -> MILModel:
    """In double precision and without dropout."""
    torch.manual_seed(seed)
    model = models.build(models.parse(options), 5, 2).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


def bag(index: int) -> torch.Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_three_steps_equal_the_steps_written_out(name: str) -> None:
    teacher, student = model_of(SUBJECTS[name], 1), model_of(SUBJECTS[name], 2)
    config = methods.parse(
        {
            "name": "mhim-v1",
            "student_init": "none",
            "consistency_weight": 0.3,
            "momentum": 0.9,
            "momentum_schedule": "cosine",
        }
    )
    method = methods.build(config, copy.deepcopy(student), copy.deepcopy(teacher))
    assert isinstance(method, MHIM)
    method.strategy = Given(Given.Config(keep=KEEP))
    optimisers = [
        torch.optim.Adam([p for p in each.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-5)
        for each in (method.model, student)
    ]
    for index, keep in enumerate(KEEP):
        label = torch.tensor(index % 2)
        now = Step(index, len(KEEP), torch.Generator())
        result = method.step(bag(index), label, now)
        # by hand
        with torch.no_grad():
            target = (teacher(bag(index)).bag_embedding / 0.1).softmax(dim=-1)
        output = student(bag(index)[list(keep)])
        distance = -(target * F.log_softmax(output.bag_embedding, dim=-1)).sum(dim=-1).mean()
        loss = sum(student.losses(output, label).values()) + 0.3 * distance
        assert_close(result.loss, loss, rtol=1e-12, atol=0)
        for optimiser, value in zip(optimisers, (result.loss, loss), strict=True):
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        method.after_step(now)
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * index / 3)) / 2
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.copy_(momentum * old + (1 - momentum) * new)
    for ours, by_hand in ((method.model, student), (method.teacher, teacher)):
        for key, value in by_hand.state_dict().items():
            assert_close(ours.state_dict()[key], value, rtol=1e-10, atol=1e-14, msg=key)
