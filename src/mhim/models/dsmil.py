"""DSMIL: dual-stream multiple-instance learning (Li et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.errors import ConfigError
from mhim.kernels import (
    Embedding,
    OnlineMax,
    OnlineSoftmax,
    Rows,
    Segments,
    draw_seed,
    embed,
    linear,
    token_chunks,
    tokens_at,
)
from mhim.models.contract import MILModel, MILOutput, initialise, models
from mhim.models.layers import Activation, Projection


@models.register("dsmil")
class DSMIL(MILModel):
    """A max stream over instance scores, and a bag stream that attends to each class's critical instance.

    With tokens z_i, instance scores c_i = W_c z_i + b_c, the critical instance of class c is
    argmax_i c_ic; A_ic = softmax_i(q(z_i) . q(z_crit(c)) / sqrt(Q)); B_c = sum_i A_ic v(z_i); the bag logits
    are a convolution over B, logit_o = b_o + sum_c W_oc . B_c (equations 2 to 6). ``logits`` are the bag
    stream's, ``probabilities`` the mean of both streams' probabilities (MHIM v1), or those of the mean logits
    (MHIM v2, ``average: logits``). MHIM masks by the largest instance score, ``mask_scores``.

    The defaults are DSMIL inside MHIM v1. Its 1,026-number ``predictor`` takes part in nothing; it is kept,
    frozen, because the published checkpoints and the published count hold it; ``predictor: false`` leaves it
    out. DSMIL's own repository: ``projection: none, value: identity, output: sigmoid, predictor: false``;
    there one output (C = 1) is allowed, a single probability by sigmoid, since a published checkpoint has it.

    ``extras``: ``max_logits`` (C,), ``critical`` (C,) the critical instances, and with instances ``instance_logits``
    (N, C). Without them and without a gradient the memory does not grow with the bag.
    """

    class Config(ComponentConfig):
        """Options of DSMIL."""

        dim: int = Field(512, ge=1, description="width of the instance tokens; the feature width if projection is none")
        projection: Literal["linear", "none"] = Field("linear", description="embed the features, or use them as tokens")
        activation: Activation = Field("relu", description="activation of the projection")
        dropout: float = Field(0.25, ge=0, lt=1, description="dropout after the projection")
        query_dim: int = Field(128, ge=1, description="width of the query network")
        value: Literal["linear", "identity"] = Field("linear", description="value network, or the tokens themselves")
        value_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the value network")
        output: Literal["softmax", "sigmoid"] = Field(
            "softmax", description="classes exclude each other, or each has its own probability"
        )
        average: Literal["probabilities", "logits"] = Field(
            "probabilities", description="what the two streams average: MHIM v1 and DSMIL, or MHIM v2"
        )
        predictor: bool = Field(True, description="keep the unused, frozen layer of MHIM v1's published files")

    config: Config
    packs = True
    paper = "Li et al., Dual-stream Multiple Instance Learning Network, CVPR 2021"
    licence = "reference program: MIT; written from the paper"
    variants = MappingProxyType(
        {"DSMIL repository": {"projection": "none", "value": "identity", "output": "sigmoid", "predictor": False}}
    )

    def __init__(self, config: Config, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        dim = config.dim if config.projection == "linear" else in_dim
        self.projection: nn.Module = nn.Identity()
        if config.projection == "linear":
            self.projection = Projection(in_dim, dim, config.activation, config.dropout)
        self.instance_classifier = nn.Linear(dim, n_classes)
        self.query = nn.Sequential(
            nn.Linear(dim, config.query_dim), nn.ReLU(), nn.Linear(config.query_dim, config.query_dim), nn.Tanh()
        )
        self.value: nn.Module = nn.Identity()
        if config.value == "linear":
            self.value = nn.Sequential(nn.Dropout(config.value_dropout), nn.Linear(dim, dim), nn.ReLU())
        self.fusion = nn.Conv1d(n_classes, n_classes, kernel_size=dim)
        self.predictor = nn.Linear(dim, n_classes).requires_grad_(False) if config.predictor else None
        initialise(self)

    @classmethod
    def fewest_classes(cls, config: ComponentConfig) -> int:
        """2, or 1 with sigmoid outputs."""
        return 1 if isinstance(config, cls.Config) and config.output == "sigmoid" else 2

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(act(W x_i + b)), or x_i."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        if not isinstance(self.projection, Projection):
            return None
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Both streams; the attention (C, N) is A, the bag embedding (C, D) is B."""
        return self._aggregate(tokens, instances=True)

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`: without instances the contributions are left out."""
        embedding = self.embedding()
        if embedding is None:
            return None
        if not (instances or torch.is_grad_enabled()):
            return self._streamed(rows, embedding)
        return self._aggregate(embed(rows, embedding), instances)

    def _streamed(self, rows: Rows, embedding: Embedding) -> MILOutput:
        """The bag alone in two passes: critical instances, then attention to them.

        Tokens of a small bag are kept between the passes. Those of a larger one are computed twice, for the first pass
        in low precision where that is faster; the second finds the critical instances too, and is taken again in
        the rare case that they are others.
        """
        seed = draw_seed() if embedding.rate else 0
        chunks = partial(token_chunks, embedding=embedding, seed=seed)
        if len(rows) * len(embedding.weight) * rows.dtype.itemsize <= self.activation_bytes // 4:
            kept = list(chunks(rows))
            return self._attended(kept, self._critical(kept).rows)
        coarse = rows.coarse()
        if coarse is None:
            return self._attended(chunks(rows), self._critical(chunks(rows)).rows)
        guess = self._critical(chunks(coarse)).positions
        found = self._attended(chunks(rows), tokens_at(rows, guess, embedding, seed))
        critical = found.extras["critical"]
        if torch.equal(rows.at(critical), rows.at(guess)):
            return found
        return self._attended(chunks(rows), tokens_at(rows, critical, embedding, seed))

    def _critical(self, chunks: Iterable[Tensor]) -> OnlineMax:
        """Each class's critical instance."""
        best = OnlineMax()
        for tokens in chunks:
            best.add(self.instance_classifier(tokens.to(self.fusion.weight.dtype)), tokens)
            del tokens  # it would live until the next chunk is there
        return best

    def _attended(self, chunks: Iterable[Tensor], critical: Float[Tensor, "classes dim"]) -> MILOutput:
        """The bag alone by attention to some critical tokens; says which instances they should have been."""
        wanted, whole, best = self._queries(critical), self.fusion.weight.dtype, OnlineMax()
        softmax = OnlineSoftmax(critical.to(whole))
        for tokens in chunks:
            best.add(self.instance_classifier(tokens), tokens)
            softmax.add(self._similarity(wanted, self._queries(tokens)).to(whole), self._values(tokens).to(whole))
            del tokens
        return self._bag(best.scores, best.positions, softmax.pooled)

    def _similarity(
        self, wanted: Float[Tensor, "classes query_dim"], queries: Float[Tensor, "n query_dim"]
    ) -> Float[Tensor, "classes n"]:
        return wanted @ queries.T / math.sqrt(self.config.query_dim)

    def _bag(
        self,
        max_logits: Float[Tensor, " classes"],
        critical: Int[Tensor, " classes"],
        embedding: Float[Tensor, "classes dim"],
    ) -> MILOutput:
        """The result without instances."""
        logits = self.fusion(embedding[None])[0, :, 0]
        extras = {"max_logits": max_logits, "critical": critical}
        return MILOutput(logits, self._probabilities(logits, max_logits), None, None, embedding, extras=extras)

    def _queries(self, tokens: Float[Tensor, "instances dim"]) -> Float[Tensor, "instances query_dim"]:
        first, _, second, _ = self.query
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        hidden = linear(tokens, first.weight, first.bias, relu=True)
        return linear(hidden, second.weight, second.bias).tanh()

    def _values(self, tokens: Float[Tensor, "instances dim"]) -> Float[Tensor, "instances dim"]:
        if not isinstance(self.value, nn.Sequential):
            return tokens
        drop, layer, _ = self.value
        assert isinstance(layer, nn.Linear)
        return linear(drop(tokens), layer.weight, layer.bias, relu=True)

    def aggregate_bags(self, tokens: Float[Tensor, "rows dim"], segments: Segments, instances: bool) -> list[MILOutput]:
        """See :meth:`MILModel.aggregate_bags`: instance scores, queries and values of all bags in one pass."""
        layers = self.instance_classifier(tokens), self._queries(tokens), self._values(tokens)
        parts = zip(*(segments.split(layer) for layer in layers), strict=True)
        return [self._joined(logits, queries, values, instances) for logits, queries, values in parts]

    def _aggregate(self, tokens: Float[Tensor, "instances dim"], instances: bool) -> MILOutput:
        return self._joined(self.instance_classifier(tokens), self._queries(tokens), self._values(tokens), instances)

    def _joined(
        self,
        instance_logits: Float[Tensor, "instances classes"],
        queries: Float[Tensor, "instances query_dim"],
        values: Float[Tensor, "instances dim"],
        instances: bool,
    ) -> MILOutput:
        max_logits, critical = instance_logits.max(dim=0)
        attention = self._similarity(queries[critical], queries).softmax(dim=-1)
        bag = self._bag(max_logits, critical, attention @ values)
        if not instances:
            return bag
        evidence = torch.einsum("nd,ocd->noc", values, self.fusion.weight)
        contributions = torch.einsum("cn,noc->no", attention, evidence)
        assert self.fusion.bias is not None
        return replace(
            bag,
            attention=attention,
            instance_scores=instance_logits,
            contributions=contributions,
            bias=self.fusion.bias,
            instance_probabilities=self._normalise(contributions),
            mask_scores=instance_logits.amax(dim=-1)[None],
            class_mask_scores=instance_logits.amax(dim=-1)[None],
            extras={**bag.extras, "instance_logits": instance_logits},
        )

    def losses(self, output: MILOutput, label: Tensor) -> dict[str, Tensor]:
        """Half of each stream's cross-entropy; MHIM v2: one cross-entropy of the mean logits.

        With sigmoid outputs each output has a binary cross-entropy against the one-hot label (against
        the label itself for a single output).
        """
        max_logits = output.extras["max_logits"]
        if self.config.average == "logits":
            return {"classification": self._loss((output.logits + max_logits) / 2, label)}
        return {"bag": 0.5 * self._loss(output.logits, label), "max": 0.5 * self._loss(max_logits, label)}

    def trained_logits(self, output: MILOutput) -> dict[str, tuple[float, Float[Tensor, "rows classes"]]]:
        """Half on each stream; MHIM v2: the mean logits."""
        if self.config.average == "logits":
            return {"bag": (1.0, self.bag_logits(output)[None])}
        return {"bag": (0.5, output.logits[None]), "max": (0.5, output.extras["max_logits"][None])}

    def bag_logits(self, output: MILOutput) -> Float[Tensor, " classes"]:
        """The mean of both streams' logits."""
        return (output.logits + output.extras["max_logits"]) / 2

    def _normalise(self, logits: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows classes"]:
        return logits.softmax(dim=-1) if self.config.output == "softmax" else logits.sigmoid()

    def _probabilities(
        self, logits: Float[Tensor, " classes"], max_logits: Float[Tensor, " classes"]
    ) -> Float[Tensor, " classes"]:
        if self.config.average == "logits":
            return self._normalise((logits + max_logits) / 2)
        return (self._normalise(logits) + self._normalise(max_logits)) / 2

    def _loss(self, logits: Float[Tensor, " classes"], label: Tensor) -> Tensor:
        if self.config.output == "softmax":
            return F.cross_entropy(logits[None], label[None])
        if self.n_classes == 1:
            if label.device.type == "cpu" and int(label) not in (0, 1):
                raise ConfigError(f"label {int(label)} for a model with one output, expected 0 or 1")
            target = label.to(logits.dtype)[None]
        else:
            target = F.one_hot(label, self.n_classes).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target)
