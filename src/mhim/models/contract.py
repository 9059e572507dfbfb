"""The contract of every aggregator: :class:`MILModel` and the one result type :class:`MILOutput`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.errors import FeatureError
from mhim.registry import Registry


@dataclass(frozen=True)
class MILOutput:
    """What an aggregator says about one bag of N instances and C classes.

    Attributes:
        logits: (C,) of the bag.
        probabilities: (C,), softmax of the logits unless the model publishes another rule.
        attention: (branch, N), rows sum to 1 where the model has a normalised attention; None without one.
        instance_scores: (N, C) evidence of each instance per class. Where ``decomposes`` is true these
            are the contributions: their sum over instances plus ``bias`` is ``logits``.
        bias: (C,) the part of the logits that no instance contributes; None unless ``decomposes``.
        decomposes: whether the bag logits are a sum over instances.
        bag_embedding: what the classifier saw, (D,) or (class, D).
        mask_scores: (head, N) salience by which MHIM ranks instances; None means ``attention``.
        extras: anything else a model wants to hand out, by name.
    """

    logits: Float[Tensor, " classes"]
    probabilities: Float[Tensor, " classes"]
    attention: Float[Tensor, "branch instances"] | None
    instance_scores: Float[Tensor, "instances classes"] | None
    bag_embedding: Float[Tensor, "*branch dim"]
    bias: Float[Tensor, " classes"] | None = None
    decomposes: bool = False
    mask_scores: Float[Tensor, "head instances"] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instance_probabilities(self) -> Float[Tensor, "instances classes"] | None:
        """Class probability of each instance: softmax over classes of ``instance_scores``.

        For attention pooling this is the "tumour probability" of the class-activation derivation
        (DTFD-MIL, CVPR 2022, section 3.2): softmax_c of w_c . (a_i z_i), without the bias.
        """
        return None if self.instance_scores is None else self.instance_scores.softmax(dim=-1)

    @property
    def salience(self) -> Float[Tensor, "head instances"]:
        """The scores that masks rank: ``mask_scores``, else ``attention``."""
        scores = self.mask_scores if self.mask_scores is not None else self.attention
        if scores is None:
            raise ValueError("this model has neither mask_scores nor attention; MHIM cannot rank its instances")
        return scores


class MILModel(nn.Module):
    """Base of every aggregator.

    A subclass defines ``project`` and ``aggregate``; MHIM masks tokens between the two. ``forward``
    never sees a label and changes no state. One bag at a time, no batch axis.

    Args:
        config: the subclass's own ``Config``.
        in_dim: feature width D.
        n_classes: number of classes C, at least 2.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig, in_dim: int, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes is {n_classes}, expected at least 2")
        self.config = config
        self.in_dim = in_dim
        self.n_classes = n_classes

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """Instance tokens, one per feature row, each from its own row alone."""
        raise NotImplementedError

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """The result for a bag of tokens."""
        raise NotImplementedError

    def forward(self, features: Float[Tensor, "instances in_dim"]) -> MILOutput:
        """The result for a bag of features; half-precision features are computed in the model's dtype.

        Raises:
            FeatureError: zero instances or a feature width other than ``in_dim``.
        """
        return self.aggregate(self.project(self.check(features)))

    def check(self, features: Tensor) -> Tensor:
        """The features in the model's dtype and on its device.

        Raises:
            FeatureError: not (N, in_dim), or zero instances.
        """
        if features.ndim != 2 or features.shape[1] != self.in_dim:
            raise FeatureError(f"features have shape {tuple(features.shape)}, the model expects (N, {self.in_dim})")
        if len(features) == 0:
            raise FeatureError("the bag holds zero instances")
        reference = next(self.parameters())
        return features.to(device=reference.device, dtype=reference.dtype)

    def losses(self, output: MILOutput, label: Tensor) -> dict[str, Tensor]:
        """Named loss terms of one bag, already weighted; their sum is minimised.

        Args:
            output: the result of ``aggregate``.
            label: () int64 class index.
        """
        return {"classification": F.cross_entropy(output.logits[None], label[None])}


def initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every linear layer, 1 and 0 for LayerNorm (v1, section 2.3)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def softmax_probabilities(logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Softmax of the bag logits."""
    return torch.softmax(logits, dim=-1)


models: Registry[MILModel] = Registry("model")
