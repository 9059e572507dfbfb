"""Mean and max pooling over instances, of instance logits or of instance embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.kernels import Embedding, OnlineMax, Rows, draw_seed, exact_linear, token_chunks
from mhim.models.contract import MILModel, MILOutput, initialise, models, softmax_probabilities
from mhim.models.layers import Activation, Projection


class PoolingConfig(ComponentConfig):
    """Options of mean and max pooling."""

    dim: int = Field(512, ge=1, description="width of the instance tokens")
    activation: Activation = Field("relu", description="activation of the projection")
    dropout: float = Field(0.25, ge=0, lt=1, description="dropout after the projection")
    level: Literal["instance", "embedding"] = Field(
        "instance", description="pool instance logits (the published form), or pool tokens and classify once"
    )


class _Pooling(MILModel):
    """Projection and one linear classifier; the subclass pools."""

    Config = PoolingConfig
    config: PoolingConfig
    licence = "textbook baseline"

    def __init__(self, config: PoolingConfig, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        self.projection = Projection(in_dim, config.dim, config.activation, config.dropout)
        self.classifier = nn.Linear(config.dim, n_classes)
        initialise(self)

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(act(W x_i + b))."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def streamed(self, rows: Rows, instances: bool) -> Iterator[Float[Tensor, "n dim"]] | None:
        """Tokens chunk by chunk in the classifier's precision where the bag's result alone is wanted, else None."""
        embedding = self.embedding()
        if instances or torch.is_grad_enabled() or embedding is None:
            return None
        chunks = token_chunks(rows, embedding, draw_seed() if embedding.rate else 0)
        return (tokens.to(self.classifier.weight.dtype) for tokens in chunks)

    def of_bag(self, logits: Float[Tensor, " classes"], embedding: Float[Tensor, "*branch dim"]) -> MILOutput:
        """The bag's result alone."""
        return MILOutput(logits, softmax_probabilities(logits), None, None, embedding)

    def output(
        self,
        attention: Float[Tensor, "branch instances"],
        contributions: Float[Tensor, "instances classes"],
        embedding: Float[Tensor, "*branch dim"],
        instance_logits: Float[Tensor, "instances classes"] | None,
    ) -> MILOutput:
        """The result of either pooling; its logits are the contributions' sum plus the classifier's bias."""
        logits = contributions.sum(dim=0) + self.classifier.bias
        scores = contributions if instance_logits is None else instance_logits
        return MILOutput(
            logits=logits,
            probabilities=softmax_probabilities(logits),
            attention=attention,
            instance_scores=scores,
            bag_embedding=embedding,
            contributions=contributions,
            bias=self.classifier.bias,
            mask_scores=scores.amax(dim=-1)[None],
            class_mask_scores=None if instance_logits is None else scores.softmax(dim=-1).amax(dim=-1)[None],
        )


@models.register("mean")
class MeanPooling(_Pooling):
    """The average: logit_c = b_c + sum_i w_c . z_i / N.

    The classifier is linear, so both levels have the same logits; ``level`` decides what ``instance_scores``
    are: the instance logits w_c . z_i + b_c, or the contributions w_c . z_i / N. The attention is uniform;
    MHIM ranks instances by their largest score.
    """

    packs = True
    paper = "average of instance logits or embeddings (baseline of MHIM-MIL, ICCV 2023, table 1)"

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`: the bag alone in the memory of a chunk."""
        chunks = self.streamed(rows, instances)
        if chunks is None:
            return None
        embedding = reduce(torch.add, (tokens.sum(dim=0) for tokens in chunks)) / len(rows)
        return self.of_bag(self.classifier(embedding), embedding)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Averaged logits."""
        evidence = tokens @ self.classifier.weight.T
        return self.output(
            attention=tokens.new_full((1, len(tokens)), 1 / len(tokens)),
            contributions=evidence / len(tokens),
            embedding=tokens.mean(dim=0),
            instance_logits=evidence + self.classifier.bias if self.config.level == "instance" else None,
        )


@models.register("max")
class MaxPooling(_Pooling):
    """The maximum over instances, of each class logit or of each embedding dimension.

    Instance level: logit_c = max_i (w_c . z_i) + b_c; the attention (C, N) marks the winner of each class, and
    ``bag_embedding`` (C, D) is the winners' tokens. Embedding level: F_d = max_i z_id and logit = W F + b; the
    attention (1, N) is the share of dimensions that an instance supplies, its contribution the part of W F
    that those dimensions carry.
    """

    packs = True
    paper = "maximum of instance logits or embeddings (baseline of MHIM-MIL, ICCV 2023, table 1)"

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`: the bag alone in the memory of a chunk."""
        chunks = self.streamed(rows, instances)
        if chunks is None:
            return None
        if self.config.level == "embedding":
            embedding = reduce(torch.maximum, (tokens.amax(dim=0) for tokens in chunks))
            return self.of_bag(self.classifier(embedding), embedding)
        best = OnlineMax()
        for tokens in chunks:
            best.add(exact_linear(tokens, self.classifier.weight), tokens)
        return self.of_bag(best.scores + self.classifier.bias, best.rows)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Max-pooled logits."""
        if self.config.level == "instance":
            return self._over_logits(tokens)
        return self._over_embeddings(tokens)

    def _over_logits(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        evidence = tokens @ self.classifier.weight.T
        winners = evidence.argmax(dim=0)
        is_winner = F.one_hot(winners, len(tokens)).to(tokens.dtype)
        return self.output(
            attention=is_winner,
            contributions=is_winner.T * evidence,
            embedding=tokens[winners],
            instance_logits=evidence + self.classifier.bias,
        )

    def _over_embeddings(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        embedding, winners = tokens.max(dim=0)
        parts = (self.classifier.weight * embedding).T
        contributions = tokens.new_zeros(len(tokens), self.n_classes).index_add(0, winners, parts)
        shares = tokens.new_zeros(len(tokens)).index_add(0, winners, torch.ones_like(embedding)) / len(winners)
        return self.output(shares[None], contributions, embedding, instance_logits=None)
