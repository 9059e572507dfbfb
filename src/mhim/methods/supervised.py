"""Plain supervision: the aggregator sees every instance of every bag."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from mhim.config import ComponentConfig
from mhim.kernels import Bags
from mhim.methods.contract import Method, Step, StepResult, methods


@methods.register("supervised")
class Supervised(Method):
    """The model's own loss on the whole bag."""

    class Config(ComponentConfig):
        """No options."""

    def step(
        self, features: Float[Tensor, "instances in_dim"], label: Int[Tensor, "*target"], step: Step
    ) -> StepResult:
        """See :meth:`Method.step`."""
        return StepResult(self.losses(self.model(features, instances=False), label))

    def step_bags(self, bags: Bags, labels: Sequence[Int[Tensor, "*target"]], step: Step) -> list[StepResult]:
        """See :meth:`Method.step_bags`."""
        outputs = self.model.forward_bags(bags, instances=False)
        return [StepResult(self.losses(output, label)) for output, label in zip(outputs, labels, strict=True)]
