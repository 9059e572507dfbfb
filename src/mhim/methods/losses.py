"""Losses between a teacher's and a student's view of one bag."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def consistency_loss(
    teacher: Float[Tensor, "*rows dim"],
    student: Float[Tensor, "*rows dim"],
    teacher_temperature: float,
    student_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy between softened bag embeddings (MHIM-MIL, ICCV 2023, eq. 8).

    -sum_d softmax(F_t / tau_t)_d log softmax(F_s / tau_s)_d, over the feature axis; the mean over
    rows where a model has one embedding per class. The teacher's side takes no gradient.

    Args:
        teacher: (D,) or (class, D), from the whole bag.
        student: same shape, from the kept instances.
        teacher_temperature: tau_t, published 0.1.
        student_temperature: tau_s, published 1.
    """
    target = F.softmax(teacher.detach() / teacher_temperature, dim=-1)
    return -(target * F.log_softmax(student / student_temperature, dim=-1)).sum(dim=-1).mean()
