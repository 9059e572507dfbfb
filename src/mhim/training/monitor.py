"""Mining made visible: numbers per epoch about what was masked, taken beside the training and never fed into it.

The method reports what it masked; the monitor alone may read instance truth. Nothing here returns to the method,
the optimiser or the choice of the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhim.kernels import to_device
from mhim.methods import Mining

INSIDE = 0.5
"""An instance counts as tumour from this annotated share on."""

Truth = Callable[[str], Tensor | None]


@dataclass
class MiningMonitor:
    """Means over the slides of an epoch, one number each where it is defined for the slide.

    ``mask_overlap`` and ``high_overlap``: Jaccard index of everything masked, and of the salient set alone, with
    the same slide's of the epoch before. ``teacher_agreement``: Spearman correlation between the teacher's and
    the student's salience of the instances that the student saw (mean over heads; ties in bag order).
    ``attention_entropy``: entropy of the teacher's attention over log N, 1 when it is spread evenly (mean over
    rows; negative values of an approximated attention count as 0). ``loss_kept``, ``loss_masked``: mean of
    -log p_i(Y) over the kept, and over the salient masked instances, with the teacher's instance probability of
    the slide's label.

    On slides with an annotated tumour instance in addition: ``high_precision``, the share of tumour in the
    salient set; ``high_recall``, the share of tumour in it; ``tumour_kept``, the share of tumour that the student
    could see; ``tumour_loss_kept`` and ``tumour_loss_masked``, the loss of the kept and of the salient masked
    tumour instances: hard instances are kept when the first is larger.

    Args:
        truth: slide_id -> (N,) share of each instance inside the annotation, or None.
    """

    truth: Truth = lambda slide_id: None
    _tumour: dict[str, Tensor | None] = field(default_factory=dict)
    _before: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _values: dict[str, list[Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def observe(
        self,
        slide_id: str,
        label: Tensor | None,
        mining: Mining,
        order: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        """Take the numbers of one step.

        Args:
            slide_id: the slide.
            label: () int64, its class index; None for a task without classes, which leaves out the losses.
            mining: what the method masked.
            order: (K,) the slide's instances in the order in which the method saw them; by default all as they are.
            size: the slide's instances N where the method saw fewer.
        """
        masks = mining.selection
        masked = masks.high | masks.low | masks.random
        seen = torch.ones_like(masked)
        self._overlaps(slide_id, *(_in_place(chosen, order, size) for chosen in (masked, masks.high, seen)))
        values = {
            "teacher_agreement": _agreement(mining),
            "attention_entropy": _entropy(mining.teacher.attention),
        }
        probabilities = mining.teacher.instance_probabilities
        loss = None
        if probabilities is not None and label is not None:
            loss = -probabilities.index_select(1, label.reshape(1))[:, 0].clamp(min=1e-12).log()
        if loss is not None:
            values |= {"loss_kept": _mean(loss, ~masked), "loss_masked": _mean(loss, masks.high)}
        tumour = self._truth(slide_id, masked.device)
        if tumour is not None:
            tumour = tumour if order is None else tumour[order]
            values |= {
                "high_precision": _mean(tumour.float(), masks.high),
                "high_recall": _mean(masks.high.float(), tumour),
                "tumour_kept": _mean((~masked).float(), tumour),
            }
            if loss is not None:
                values["tumour_loss_kept"] = _mean(loss, tumour & ~masked)
                values["tumour_loss_masked"] = _mean(loss, tumour & masks.high)
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def finish_epoch(self) -> dict[str, float | None]:
        """The epoch's means, None where no slide defines a number; empty when nothing was observed."""
        if not self._values:
            return {}
        means = torch.stack([torch.stack(values).nanmean() for values in self._values.values()]).tolist()
        named, self._values = dict(zip(self._values, means, strict=True)), {}
        return {name: None if math.isnan(value) else round(value, 6) for name, value in named.items()}

    def _overlaps(self, slide_id: str, masked: Tensor, high: Tensor, seen: Tensor) -> None:
        """Sets over the slide's instances; those that one of the two epochs did not see count for neither."""
        before = self._before.get(slide_id)
        self._before[slide_id] = (masked, high, seen)
        for at, (name, now) in enumerate((("mask_overlap", masked), ("high_overlap", high))):
            value = torch.full((), torch.nan, device=now.device)
            if before is not None:
                value = _mean((now & before[at]).float(), (now | before[at]) & seen & before[2])
            self._values.setdefault(name, []).append(value)

    def _truth(self, slide_id: str, device: torch.device) -> Tensor | None:
        """Which instances are tumour, None for a slide without; read once per slide."""
        if slide_id not in self._tumour:
            share = self.truth(slide_id)
            tumour = None if share is None else share >= INSIDE
            self._tumour[slide_id] = tumour if tumour is not None and bool(tumour.any()) else None
        tumour = self._tumour[slide_id]
        return None if tumour is None else to_device(tumour, device)


def _in_place(chosen: Tensor, order: Tensor | None, size: int | None) -> Tensor:
    """A set over the instances that were seen, in their order, as a set over all of the slide's."""
    return chosen if order is None else chosen.new_zeros(size or len(chosen)).scatter_(0, order, chosen)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of (N,) values over a set; NaN for an empty one. No host synchronisation."""
    return (values * where).sum() / where.sum()


def _agreement(mining: Mining) -> Tensor:
    count = len(mining.shown)
    if count < 2:
        return mining.salience.new_full((), torch.nan)
    teacher = mining.salience.mean(dim=0)[mining.shown]
    student = mining.student_salience.mean(dim=0)[:count]
    difference = (_ranks(teacher) - _ranks(student)).square().sum()
    return 1 - 6 * difference / (count * (count**2 - 1))


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort().float()


def _entropy(attention: Tensor | None) -> Tensor:
    if attention is None or attention.shape[1] < 2:
        return torch.full((), torch.nan, device=None if attention is None else attention.device)
    weight = attention.clamp(min=0)
    share = weight / weight.sum(dim=1, keepdim=True)
    return torch.special.entr(share).sum(dim=1).mean() / math.log(attention.shape[1])
