"""The teacher at moments of training, kept for pictures of the mining; nothing is trained or predicted with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mhim.checkpoint import save_model
from mhim.methods import Method

MOMENTS = ("start", "middle", "best", "last")
"""Before the first step; at half the schedule, if training got there; after the best and after the last epoch."""


@dataclass
class TeacherKeeper:
    """Copies of a method's teacher. A method without one leaves nothing.

    Attributes:
        epochs: length of the schedule.
        is_active: whether anything is kept.
        kept: moment -> (epochs done, tensors).
    """

    epochs: int
    is_active: bool = True
    kept: dict[str, tuple[int, dict[str, Tensor]]] = field(default_factory=dict)

    def before_epoch(self, index: int, method: Method) -> None:
        """Keep the start and the middle."""
        if index == 0:
            self._keep("start", index, method)
        elif index == self.epochs // 2:
            self._keep("middle", index, method)

    def after_epoch(self, index: int, method: Method, is_best: bool) -> None:
        """Keep the best epoch's."""
        if is_best:
            self._keep("best", index + 1, method)

    def at_end(self, done: int, method: Method) -> None:
        """Keep the last epoch's."""
        self._keep("last", done, method)

    def _keep(self, moment: str, done: int, method: Method) -> None:
        if self.is_active and method.watching is not None:
            state = {key: value.detach().cpu() for key, value in method.watching.state_dict().items()}
            self.kept[moment] = (done, copy.deepcopy(state))


def teacher_file(folder: Path, moment: str) -> Path:
    """Where a fold keeps its teacher of a moment."""
    return folder / f"teacher_{moment}.safetensors"


def write_teachers(
    folder: Path, keeper: TeacherKeeper, method: Method, outputs: Sequence[str], extra: Mapping[str, str]
) -> None:
    """Write ``teacher_<moment>.safetensors``, whose metadata has ``epochs_done`` and ``epochs``.

    The method's own teacher ends as the last one written.
    """
    if method.watching is None:
        return
    for moment, (done, state) in keeper.kept.items():
        method.watching.load_state_dict(state)
        facts = {"moment": moment, "epochs_done": str(done), "epochs": str(keeper.epochs)}
        save_model(teacher_file(folder, moment), method.watching, outputs, dict(extra) | facts)
