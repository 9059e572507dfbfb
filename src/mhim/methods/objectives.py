"""What a method minimises for a bag, and what a model then predicts: classes, or hazards of survival."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from mhim.models.contract import MILModel, MILOutput
from mhim.survival import hazard_loss


class Classification:
    """The model's own losses of a class index () int64; it predicts class probabilities."""

    def losses(self, model: MILModel, output: MILOutput, target: Int[Tensor, "*target"]) -> dict[str, Tensor]:
        """Named loss terms, already weighted."""
        return model.losses(output, target)

    def prediction(self, model: MILModel, output: MILOutput) -> Float[Tensor, " classes"]:
        """(C,) class probabilities."""
        return output.probabilities


class DiscreteHazards(Classification):
    """Negative log-likelihood of discrete hazards on every supervised output of the model (section 6.5).

    The target is (2,) int64: bin of the follow-up time, and 1 for an event or 0 for a censored case. It predicts
    the logits of the hazards.

    Args:
        event_share: alpha of :func:`mhim.survival.hazard_loss`.
    """

    def __init__(self, event_share: float = 0.0) -> None:
        self.event_share = event_share

    def losses(self, model: MILModel, output: MILOutput, target: Int[Tensor, "*target"]) -> dict[str, Tensor]:
        """See :meth:`Classification.losses`; the mean over rows where an output has several."""
        terms: dict[str, Tensor] = {}
        for name, (weight, logits) in model.trained_logits(output).items():
            rows = target.expand(len(logits), 2)
            terms[name] = weight * hazard_loss(logits, rows[:, 0], rows[:, 1] == 1, self.event_share).mean()
        return terms

    def prediction(self, model: MILModel, output: MILOutput) -> Float[Tensor, " classes"]:
        """(bins,) logits of the hazards."""
        return model.bag_logits(output)


CLASSIFICATION = Classification()
