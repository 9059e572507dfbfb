"""CLAM: clustering-constrained attention, single and multiple branch (Lu et al., Nature BME 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.kernels import Embedding, Rows, Segments, draw_seed, exact_linear, pool, segment_pool, tokens_at
from mhim.models.contract import MILModel, MILOutput, initialise, models, softmax_probabilities
from mhim.models.layers import Activation, AttentionScores, Projection

TokensAt = Callable[[Tensor], Tensor]

_HARD_GAP = math.log(1000.0)


class CLAMConfig(ComponentConfig):
    """Options of CLAM; the defaults are its "small" size as compared with MHIM v1."""

    dim: int = Field(512, ge=1, description="width of the instance tokens")
    activation: Activation = Field("relu", description="activation of the projection")
    dropout: float = Field(0.25, ge=0, lt=1, description="dropout after the projection")
    attention_dim: int = Field(256, ge=1, description="width of the attention branches")
    attention_dropout: float = Field(0.25, ge=0, lt=1, description="dropout in the attention branches")
    gated: bool = Field(True, description="gated attention")
    cluster_size: int = Field(
        8, ge=1, description="instances of highest, and of lowest, attention that are clustered (at most half the bag)"
    )
    subtyping: bool = Field(False, description="classes exclude each other: other classes' top instances are negatives")
    instance_loss: Literal["svm", "cross-entropy"] = Field("svm", description="loss of the instance classifiers")
    bag_weight: float = Field(0.7, gt=0, le=1, description="weight of the bag loss; the instance loss has the rest")


class _CLAM(MILModel):
    """What both variants share; ``branches`` attention rows, one instance classifier per class."""

    Config = CLAMConfig
    config: CLAMConfig
    paper = "Lu et al., Data-efficient and weakly supervised computational pathology, Nature BME 2021"
    licence = "reference program: GPL-3.0; written from the paper, no line of it used"
    packs = True
    loss_reads_instances = True
    is_single_branch: ClassVar[bool]

    def __init__(self, config: CLAMConfig, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        branches = 1 if self.is_single_branch else n_classes
        self.projection = Projection(in_dim, config.dim, config.activation, config.dropout)
        self.attention = AttentionScores(
            config.dim,
            config.attention_dim,
            branches,
            "tanh",
            config.gated,
            bias=True,
            dropout=config.attention_dropout,
        )
        self.classifier = nn.Linear(config.dim, n_classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(config.dim, 2) for _ in range(n_classes))
        initialise(self)

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(relu(W x_i + b))."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Attention-pooled logits; one bag embedding (D,), or one per class (C, D)."""
        raw = self.attention(tokens)
        pooled = raw.softmax(dim=-1) @ tokens
        return self._output(raw, pooled, tokens @ self.classifier.weight.T, tokens.__getitem__)

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`. Tokens of clustered instances are computed again, with the same dropout."""
        embedding, branches = self.embedding(), self.attention.branches()
        if embedding is None or branches is None:
            return None
        seed = draw_seed() if self.training else 0
        wanted = instances or self.training
        pooled = pool(rows, embedding, branches, self.classifier.weight, wanted, seed, self.activation_bytes)
        return self._output(*pooled, tokens_at=lambda positions: tokens_at(rows, positions, embedding, seed))

    def aggregate_bags(self, tokens: Float[Tensor, "rows dim"], segments: Segments, instances: bool) -> list[MILOutput]:
        """See :meth:`MILModel.aggregate_bags`: scores and sums of all bags in one pass."""
        raw = self.attention.of_rows(tokens)
        pooled = segment_pool(raw, tokens, segments)
        evidence = exact_linear(tokens, self.classifier.weight)
        parts = zip(segments.split(raw, 1), pooled, segments.split(evidence), segments.split(tokens), strict=True)
        return [self._output(*part, tokens_at=own.__getitem__) for *part, own in parts]

    def _output(
        self,
        raw: Float[Tensor, "branch instances"] | None,
        pooled: Float[Tensor, "branch dim"],
        evidence: Float[Tensor, "instances classes"] | None,
        tokens_at: TokensAt,
    ) -> MILOutput:
        logits = (pooled * self.classifier.weight).sum(dim=-1) + self.classifier.bias
        attention = contributions = None
        if raw is not None and evidence is not None:
            attention = raw.softmax(dim=-1)
            contributions = attention.T * evidence
        return MILOutput(
            logits=logits,
            probabilities=softmax_probabilities(logits),
            attention=attention,
            instance_scores=contributions,
            bag_embedding=pooled[0] if self.is_single_branch else pooled,
            contributions=contributions,
            bias=None if contributions is None else self.classifier.bias,
            extras={} if raw is None else {"attention_logits": raw, "tokens_at": tokens_at},
        )

    def losses(self, output: MILOutput, label: Tensor) -> dict[str, Tensor]:
        """0.7 cross-entropy + 0.3 instance loss; the latter is 0 for a bag of one instance."""
        share = self.config.bag_weight
        clustering = self.cluster(output, label)
        return {
            "classification": share * F.cross_entropy(output.logits[None], label[None]),
            "instance": (1 - share) * clustering.loss,
        }

    def cluster(self, output: MILOutput, label: Tensor) -> InstanceClustering:
        """The instance clustering of a bag under a label (the instance loss before its weight)."""
        assert output.attention is not None
        return cluster_instances(
            output.attention,
            output.extras["tokens_at"],
            [cast("nn.Linear", classifier) for classifier in self.instance_classifiers],
            label,
            self.config,
        )


@models.register("clam-sb")
class CLAMSB(_CLAM):
    """CLAM-SB: one attention row, one bag embedding, one linear classifier for all classes.

    ``extras``: ``attention_logits`` (1, N), ``tokens_at`` which gives the tokens (P, D) at (P,) positions.
    """

    is_single_branch = True


@models.register("clam-mb")
class CLAMMB(_CLAM):
    """CLAM-MB: an attention row, a bag embedding and a linear classifier per class.

    Class c's classifier is row c of ``classifier``. ``extras``: ``attention_logits`` (C, N) and
    ``tokens_at`` which gives the tokens (P, D) at (P,) positions.
    """

    is_single_branch = False


@dataclass(frozen=True)
class InstanceClustering:
    """Instance loss of one bag, and for every class that was looked at its most and its least attended instances.

    Attributes:
        loss: the mean over classes.
        predicted: (K, 2k) what the two-way classifiers say.
        targets: (K, 2k) pseudo labels.
        counts: (K, 2k) which of them are in the loss.
    """

    loss: Float[Tensor, ""]
    predicted: Int[Tensor, "looked samples"]
    targets: Int[Tensor, "looked samples"]
    counts: Bool[Tensor, "looked samples"]

    @property
    def predictions(self) -> Int[Tensor, " counted"]:
        """What was predicted for the instances in the loss, class by class."""
        return self.predicted[self.counts]

    @property
    def labels(self) -> Int[Tensor, " counted"]:
        """Their pseudo labels."""
        return self.targets[self.counts]


def cluster_instances(
    attention: Float[Tensor, "branch instances"],
    tokens_at: TokensAt,
    classifiers: list[nn.Linear],
    label: Int[Tensor, ""],
    config: CLAMConfig,
) -> InstanceClustering:
    """Pseudo-label the most and least attended instances and score them (section "Instance-level clustering").

    For the bag's class the k most attended instances are positives and the k least attended negatives of that
    class's two-way classifier; with subtyping every other class's k most attended are its negatives, and the
    loss is averaged over classes. k = min(cluster_size, N // 2), so no instance is both; with k = 0 (N = 1)
    the loss is 0. Without subtyping the other classes' classifiers have no gradient, so that Adam passes them over as
    published. An accelerator is not asked for the label: there theirs is a gradient of zeros, which Adam's momentum
    and weight decay follow.

    Args:
        attention: one row, or one per class.
        tokens_at: gives the tokens (P, D) at (P,) int64 positions.
        classifiers: one two-way classifier per class.
        label: the bag's class.
        config: cluster size, subtyping, loss.
    """
    size = min(config.cluster_size, attention.shape[1] // 2)
    if size == 0:
        none = torch.zeros(0, 0, dtype=torch.int64, device=attention.device)
        return InstanceClustering(attention.new_zeros(()), none, none, none.bool())
    is_own = torch.arange(len(classifiers), device=label.device) == label
    rows = attention.detach().expand(len(classifiers), -1)
    if not config.subtyping and label.device.type == "cpu":
        one = slice(int(label), int(label) + 1)
        classifiers, rows, is_own = classifiers[one], rows[one], is_own[one]
    weights, biases = (torch.stack(parts) for parts in zip(*((c.weight, c.bias) for c in classifiers), strict=True))
    if not config.subtyping and len(classifiers) > 1:
        parts = (rows, weights, biases, is_own)
        rows, weights, biases, is_own = (part.index_select(0, label.reshape(1)) for part in parts)
    chosen = torch.cat([rows.topk(size).indices, rows.topk(size, largest=False).indices], dim=1)
    scores = tokens_at(chosen.flatten()).unflatten(0, chosen.shape) @ weights.mT + biases[:, None]
    is_top = torch.arange(2 * size, device=label.device) < size
    targets, counts = (is_own[:, None] & is_top).long(), is_own[:, None] | is_top
    loss_of = smooth_svm_losses if config.instance_loss == "svm" else partial(F.cross_entropy, reduction="none")
    losses = loss_of(scores.flatten(0, 1), targets.flatten()).view_as(targets) * counts
    return InstanceClustering((losses.sum(dim=1) / counts.sum(dim=1)).mean(), scores.argmax(dim=-1), targets, counts)


def smooth_svm_loss(scores: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Float[Tensor, ""]:
    """The mean of :func:`smooth_svm_losses`."""
    return smooth_svm_losses(scores, labels).mean()


def smooth_svm_losses(
    scores: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], margin: float = 1.0, scale: float = 1.0
) -> Float[Tensor, " samples"]:
    """Smooth top-1 support-vector loss (Berrada et al., ICLR 2018, equation 12 with k = 1).

    Per sample scale * log sum_j exp((s_j + margin [j != y] - s_y) / scale), and the plain maximum of the same
    terms where the two largest scores are at least scale * ln(1000) apart.

    Args:
        scores: class scores.
        labels: class indices.
        margin: alpha.
        scale: temperature tau.
    """
    is_other = 1 - F.one_hot(labels, scores.shape[-1]).to(scores.dtype)
    terms = scores + margin * is_other - scores.gather(1, labels[:, None])
    largest = scores.topk(2, dim=-1).values
    is_clear = largest[:, 0] - largest[:, 1] >= scale * _HARD_GAP
    smooth = scale * torch.logsumexp(terms / scale, dim=-1)
    return torch.where(is_clear, terms.amax(dim=-1), smooth)
