"""The contract of every aggregator: :class:`MILModel` and the one result type :class:`MILOutput`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.errors import ConfigError, FeatureError
from mhim.kernels import Bags, Embedding, Rows, Segments, embed, to_device
from mhim.kernels.attention_pool import BUDGET_BYTES
from mhim.registry import Registry


@dataclass(frozen=True)
class MILOutput:
    """What an aggregator says about one bag of N instances and C classes.

    Attributes:
        logits: (C,) of the bag.
        probabilities: (C,), softmax of the logits unless the model publishes another rule.
        attention: (branch, N). Rows sum to 1 for a model whose ``attention_is_normalised``; None without one.
        instance_scores: (N, C) the model's own score of each instance per class: the instance classifier's
            where the model has one (DSMIL, DTFD's first tier, instance pooling), else ``contributions``.
        bag_embedding: what the classifier saw, (D,) or (class, D).
        contributions: (N, C) the part of each bag logit that an instance brings: their sum over instances plus
            ``bias`` is ``logits``. None for a model whose logits are no sum over instances.
        bias: (C,) the part of the logits that no instance contributes; given exactly when ``contributions`` is.
        instance_probabilities: (N, C) class probability of each instance. Left out, it is the softmax over
            classes of ``contributions``, the "tumour probability" of the class-activation derivation (DTFD-MIL,
            CVPR 2022, section 3.2: softmax_c of w_c . (a_i z_i), no bias), else of ``instance_scores``.
        mask_scores: (head, N) salience by which MHIM v1 ranks instances; None means ``attention``.
        class_mask_scores: (1, N) salience by which MHIM v2 ranks instances; None means the largest
            class probability of each instance.
        extras: anything else a model wants to hand out, by name.
    """

    logits: Float[Tensor, " classes"]
    probabilities: Float[Tensor, " classes"]
    attention: Float[Tensor, "branch instances"] | None
    instance_scores: Float[Tensor, "instances classes"] | None
    bag_embedding: Float[Tensor, "*branch dim"]
    contributions: Float[Tensor, "instances classes"] | None = None
    bias: Float[Tensor, " classes"] | None = None
    instance_probabilities: Float[Tensor, "instances classes"] | None = None
    mask_scores: Float[Tensor, "head instances"] | None = None
    class_mask_scores: Float[Tensor, "1 instances"] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.contributions is None) != (self.bias is None):
            raise ValueError("contributions and bias are given together or not at all")
        scores = self.contributions if self.contributions is not None else self.instance_scores
        if self.instance_probabilities is None and scores is not None:
            object.__setattr__(self, "instance_probabilities", scores.softmax(dim=-1))

    @property
    def decomposes(self) -> bool:
        """Whether the bag logits are a sum over instances."""
        return self.contributions is not None

    @property
    def salience(self) -> Float[Tensor, "head instances"]:
        """The scores that masks of MHIM v1 rank: ``mask_scores``, else ``attention``."""
        scores = self.mask_scores if self.mask_scores is not None else self.attention
        if scores is None:
            raise ValueError("this model has neither mask_scores nor attention; MHIM cannot rank its instances")
        return scores

    @property
    def class_salience(self) -> Float[Tensor, "1 instances"]:
        """The class-aware scores that masks of MHIM v2 rank: max over classes of ``instance_probabilities``.

        A model may publish another rule in ``class_mask_scores`` (DSMIL: the largest instance score).
        """
        if self.class_mask_scores is not None:
            return self.class_mask_scores
        if self.instance_probabilities is None:
            raise ValueError("this model has no instance probabilities; MHIM v2 cannot rank its instances")
        return self.instance_probabilities.amax(dim=-1)[None]


class MILModel(nn.Module):
    """Base of every aggregator.

    A subclass defines ``project`` and ``aggregate``; MHIM masks tokens between the two. ``forward``
    never sees a label, draws no random numbers but dropout, and changes no state. One bag at a time,
    no batch axis.

    Args:
        config: the subclass's own ``Config``.
        in_dim: feature width D.
        n_classes: number of classes C, at least ``fewest_classes(config)``.

    Raises:
        ConfigError: too few classes, or a feature width below 1.

    Attributes:
        paper: where the model was published, for ``mhim models``.
        licence: what the reference program's licence is and that no line of it is used.
        variants: published settings beside the defaults, by name, for ``mhim models``.
        attention_is_normalised: whether the rows of ``attention`` sum to 1.
        is_permutation_equivariant: whether another order of the instances gives the same bag and the
            instances' values in that order.
        shuffles_in_training: the published training draws a random order of the instances for every step.
            Whoever trains permutes the features, with a generator of its own; ``aggregate`` never does.
        packs: several bags are projected in one pass, and ``aggregate_bags`` takes their tokens laid one bag after
            another; otherwise they go through ``forward`` one at a time.
        loss_reads_instances: ``losses`` needs what has a row per instance, also in evaluation.
        activation_bytes: what a training step may keep of a bag for its gradient where the model computes chunk by
            chunk (AB-MIL, CLAM, DTFD); chunks beyond it are computed again.
        is_teacher: it looks at bags that were checked when they were read, and leaves out of ``extras`` what costs a
            pass of its own.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    feature_mean: Tensor | None
    feature_scale: Tensor | None
    attention_is_normalised: ClassVar[bool] = True
    is_permutation_equivariant: ClassVar[bool] = True
    shuffles_in_training: bool = False
    packs: ClassVar[bool] = False
    loss_reads_instances: ClassVar[bool] = False
    is_teacher: bool = False
    activation_bytes: int = BUDGET_BYTES

    def __init__(self, config: ComponentConfig, in_dim: int, n_classes: int) -> None:
        super().__init__()
        if n_classes < self.fewest_classes(config):
            raise ConfigError(f"n_classes is {n_classes}, expected at least {self.fewest_classes(config)}")
        if in_dim < 1:
            raise ConfigError(f"in_dim is {in_dim}, expected at least 1")
        self.config = config
        self.in_dim = in_dim
        self.n_classes = n_classes
        self.register_buffer("feature_mean", None)
        self.register_buffer("feature_scale", None)

    @classmethod
    def fewest_classes(cls, config: ComponentConfig) -> int:
        """The smallest class count that the model takes."""
        return 2

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass that writes its own plain form gives up its parent's fast form of it."""
        super().__init_subclass__(**kwargs)
        if "project" in cls.__dict__ and "embedding" not in cls.__dict__:
            cls.embedding = MILModel.embedding
        if cls.__dict__.keys() & {"project", "aggregate"} and "fused" not in cls.__dict__:
            cls.fused = MILModel.fused
        if cls.__dict__.keys() & {"project", "aggregate", "forward"} and "packs" not in cls.__dict__:
            cls.packs = False

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """Instance tokens, one per feature row, each from its own row alone."""
        raise NotImplementedError

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """The result for a bag of tokens."""
        raise NotImplementedError

    def embedding(self) -> Embedding | None:
        """What ``project`` after ``standardised`` does, for the fast paths; None where they do not know it."""
        return None

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """``aggregate(tokens(...))`` in one pass; None where the model has no such pass."""
        return None

    def forward(
        self,
        features: Float[Tensor, "instances in_dim"],
        rows: Int[Tensor, " kept"] | None = None,
        instances: bool = True,
    ) -> MILOutput:
        """The result for a bag of features of any floating dtype; it is computed in the model's own.

        Args:
            features: (N, D).
            rows: (K,) int64 the instances that the model sees, in their order; all by default. The result is that
                of ``features[rows]``, of which no copy is made.
            instances: without it a model may leave out what has a row per instance, and then needs memory for one
                chunk of a bag of any size.

        Raises:
            FeatureError: zero instances, a feature width other than ``in_dim``, or, in evaluation mode on the
                CPU, NaN or infinite features (bags are checked when they are read; a device is not made to wait).
        """
        features = self.check(features)
        is_unchecked = not self.training and not self.is_teacher and features.device.type == "cpu"
        if is_unchecked and not is_finite(features):
            raise FeatureError("the bag holds NaN or infinite features")
        result = None if features.requires_grad else self.fused(self._bag_rows(features, rows), instances)
        return self.aggregate(self.tokens(features, rows)) if result is None else result

    def forward_bags(
        self, bags: Bags, rows: Sequence[Int[Tensor, " _"]] | None = None, instances: bool = True
    ) -> list[MILOutput]:
        """The results of several bags, equal to those of ``forward`` for one at a time but for dropout's draws.

        Args:
            bags: features that ``check`` has passed.
            rows: for each bag (K,) int64, as in ``forward``.
            instances: as in ``forward``.
        """
        if not self.packs or len(bags) == 1:
            chosen = [None] * len(bags) if rows is None else rows
            return [self(features, index, instances) for features, index in zip(bags, chosen, strict=True)]
        index, segments = (None, bags.segments) if rows is None else bags.chosen(rows)
        return self.aggregate_bags(self.tokens(bags.together, index), segments, instances)

    def aggregate_bags(self, tokens: Float[Tensor, "rows dim"], segments: Segments, instances: bool) -> list[MILOutput]:
        """``aggregate`` of each bag's tokens; a model that ``packs`` may do what is heavy for all rows at once."""
        return [self.aggregate(part) for part in segments.split(tokens)]

    def tokens(
        self, features: Float[Tensor, "instances in_dim"], rows: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "kept dim"]:
        """Tokens of checked features, or of some rows of them: ``project(standardised(features[rows]))``."""
        embedding = None if features.requires_grad else self.embedding()
        if embedding is not None:
            return embed(self._bag_rows(features, rows), embedding)
        chosen = features if rows is None else features[rows]
        return self.project(self.standardised(chosen.to(next(self.parameters()).dtype)))

    def _bag_rows(self, features: Tensor, rows: Tensor | None) -> Rows:
        """The rows for the fast paths, in the dtype of the model or of autocast."""
        reference = next(self.parameters())
        kind = reference.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else reference.dtype
        return Rows(features, rows, reference.device, dtype)

    def check(self, features: Tensor) -> Tensor:
        """The features on the model's device, in the dtype in which they are stored.

        Raises:
            FeatureError: not (N, in_dim), or zero instances.
        """
        if features.ndim != 2 or features.shape[1] != self.in_dim:
            raise FeatureError(f"features have shape {tuple(features.shape)}, the model expects (N, {self.in_dim})")
        if len(features) == 0:
            raise FeatureError("the bag holds zero instances")
        return to_device(features, next(self.parameters()).device)

    def standardise(self, mean: Float[Tensor, " in_dim"], scale: Float[Tensor, " in_dim"]) -> None:
        """From now on ``forward`` sees (x - mean) / scale; both are saved with the weights.

        Raises:
            ConfigError: another width than ``in_dim``.
        """
        if mean.shape != (self.in_dim,) or scale.shape != (self.in_dim,):
            raise ConfigError(
                f"mean and scale have shapes {tuple(mean.shape)}, {tuple(scale.shape)}, not {self.in_dim}"
            )
        reference = next(self.parameters())
        self.feature_mean = mean.to(reference).clone()
        self.feature_scale = scale.to(reference).clone()

    def standardised(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances in_dim"]:
        """(x - mean) / scale, or the features as they are when ``standardise`` was never called."""
        if self.feature_mean is None or self.feature_scale is None:
            return features
        return (features - self.feature_mean) / self.feature_scale

    def losses(self, output: MILOutput, label: Tensor) -> dict[str, Tensor]:
        """Named loss terms of one bag, already weighted; their sum is minimised.

        Args:
            output: the result of ``aggregate``.
            label: () int64 class index.
        """
        return {"classification": F.cross_entropy(output.logits[None], label[None])}

    def trained_logits(self, output: MILOutput) -> dict[str, tuple[float, Float[Tensor, "rows classes"]]]:
        """Where the loss of a task other than classification is put: name -> (weight, logits).

        The bag's logits; a model with several supervised outputs names each. Terms that need classes (CLAM's
        instance clustering) have no part in it.
        """
        return {"bag": (1.0, output.logits[None])}

    def bag_logits(self, output: MILOutput) -> Float[Tensor, " classes"]:
        """The logits that predict the bag in a task other than classification."""
        return output.logits


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
    """How many numbers the parameters of a module hold, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_finite(features: Float[Tensor, "instances in_dim"]) -> bool:
    """Whether no feature is NaN or infinite, read by blocks."""
    blocks = features.detach().split(256)
    return all(bool(torch.isfinite(block.sum(dtype=torch.float32))) for block in blocks)


def softmax_probabilities(logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Softmax of the bag logits."""
    return torch.softmax(logits, dim=-1)


models: Registry[MILModel] = Registry("model")
