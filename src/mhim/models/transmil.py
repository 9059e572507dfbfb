"""TransMIL: Nyström self-attention with a convolutional position encoding (Shao et al., NeurIPS 2021)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.kernels import Embedding, Rows, depthwise, embed
from mhim.models.contract import MILModel, MILOutput, initialise, models, softmax_probabilities
from mhim.models.layers import Activation, Projection
from mhim.models.nystrom import ClassRow, ExactAttention, NystromAttention, Prepared

_SMALLEST_SIDE = 7


class AttentionLayer(nn.Module):
    """Pre-norm attention with residual; there is no feed-forward block."""

    def __init__(self, dim: int, attention: ExactAttention) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = attention

    def prepare(self, tokens: Float[Tensor, "tokens dim"], row: ClassRow | None) -> Prepared:
        """The normalised sequence, ready to attend; ``row`` of its attention is read out."""
        return self.attention.prepare(self.norm(tokens), row)

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], prepared: Prepared, count: int
    ) -> Float[Tensor, "count dim"]:
        """The first ``count`` tokens after the layer."""
        out = self.attention.attend(prepared, count)
        return tokens[:count] + out if torch.is_grad_enabled() else out.add_(tokens[:count])


class PositionEncoding(nn.Module):
    """PPEG: the instances laid out as a square, x + conv7(x) + conv5(x) + conv3(x), all depth-wise.

    Args:
        dim: token width.
        fills_to_seven: zero-pad squares below 7 x 7, re-flowed into rows of 7 (MHIM's encoder).
    """

    def __init__(self, dim: int, fills_to_seven: bool) -> None:
        super().__init__()
        self.fills_to_seven = fills_to_seven
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim) for size in (7, 5, 3)
        )

    def forward(self, tokens: Float[Tensor, "instances dim"]) -> Float[Tensor, "instances dim"]:
        """The instances with their surroundings, in their order; the first ones fill the last row up."""
        square = wrap_to_square(tokens)
        side = math.isqrt(len(square))
        if self.fills_to_seven and side < _SMALLEST_SIDE:
            side = _SMALLEST_SIDE
            square = F.pad(square, (0, 0, 0, side * side - len(square)))
        image = square.view(side, side, -1)
        return depthwise(image, *self._merged(), with_image=True).flatten(0, 1)[: len(tokens)]

    def _merged(self) -> tuple[Float[Tensor, "dim 1 7 7"], Float[Tensor, " dim"]]:
        """The three convolutions as one."""
        kernel = self.conv7.weight + F.pad(self.conv5.weight, [1] * 4) + F.pad(self.conv3.weight, [2] * 4)
        biases = [convolution.bias for convolution in (self.conv7, self.conv5, self.conv3)]
        assert biases[0] is not None
        assert biases[1] is not None
        assert biases[2] is not None
        return kernel, biases[0] + biases[1] + biases[2]  # a stack's gradients would share memory and not add up


def wrap_to_square(tokens: Float[Tensor, "instances dim"]) -> Float[Tensor, "cells dim"]:
    """The tokens followed by the first ones again, up to the next square number."""
    side = math.isqrt(len(tokens) - 1) + 1
    return torch.cat([tokens, tokens[: side * side - len(tokens)]])


class TransMILConfig(ComponentConfig):
    """Options of TransMIL."""

    dim: int = Field(512, ge=1, description="width of the tokens, a multiple of heads")
    activation: Activation = Field("relu", description="activation of the projection")
    dropout: float = Field(0.25, ge=0, lt=1, description="dropout after the projection")
    heads: int = Field(8, ge=1, description="attention heads (MHIM's TCGA log: 2)")
    attention: Literal["nystrom", "exact"] = Field(
        "nystrom", description="through landmarks, or exact, whose time grows with the square of the instances"
    )
    landmarks: int | None = Field(None, ge=1, description="Nyström landmarks; half the width if not given")
    iterations: int = Field(6, ge=1, description="iterations of the pseudo-inverse")
    kernel: int = Field(33, ge=1, description="odd length of the value convolution")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout after each attention layer")
    padding: Literal["encoder", "class"] = Field("encoder", description="where instances are repeated to a square")
    attention_layer: Literal["first", "last"] = Field("first", description="layer whose attention is handed out")
    class_row: ClassRow = Field("class-token", description="row of that attention; first-padded is a known fault")

    @model_validator(mode="after")
    def _fits(self) -> TransMILConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even")
        if self.landmarks is None and self.dim < 2:
            raise ValueError("dim 1 has no half for the landmarks; give landmarks")
        if self.attention == "exact" and self.class_row == "first-padded":
            raise ValueError("class_row first-padded: exact attention pads nothing")
        return self


@models.register("transmil")
class TransMIL(MILModel):
    """A class token and the instances through two Nyström layers with PPEG between them; the token is classified.

    Only what the class token reads of the second layer is computed. Two published paddings (``padding``):
    ``encoder``, inside MHIM, repeats instances to a square for PPEG alone; ``class``, TransMIL's own program and
    MHIM's baseline class, repeats them before the class token is added, so the copies take part in both
    attention layers. The logits differ unless N is a square number.

    ``attention`` (heads, N) is what the class token pays to the instances in the first (published) or last
    layer, a read-out without gradient: products of approximated softmaxes, not normalised, possibly negative.
    ``class_row: first-padded`` returns the row of padded position 0 instead, as MHIM's first public program
    did until December 2023. The logits are no sum over instances. ``instance_scores`` (N, C) are MHIM v2's:
    first-layer attention x value per head, output projection, classifier.

    ``extras`` in evaluation mode: ``attention_layer1`` and, unless a teacher, ``attention_layer2`` (heads, N).
    """

    Config = TransMILConfig
    config: TransMILConfig
    paper = "Shao et al., TransMIL: Transformer based Correlated Multiple Instance Learning, NeurIPS 2021"
    licence = "reference program: GPL-3.0, non-commercial; written from the paper, no line of it used"
    attention_is_normalised = False
    is_permutation_equivariant = False

    def __init__(self, config: TransMILConfig, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        self.projection = Projection(in_dim, config.dim, config.activation, config.dropout)
        self.class_token = nn.Parameter(torch.empty(1, config.dim))
        self.layer1 = self._layer()
        self.position = PositionEncoding(config.dim, fills_to_seven=config.padding == "encoder")
        self.layer2 = self._layer()
        self.norm = nn.LayerNorm(config.dim)
        self.classifier = nn.Linear(config.dim, n_classes)
        self._initialise()

    def _layer(self) -> AttentionLayer:
        options = self.config
        if options.attention == "exact":
            exact = ExactAttention(options.dim, options.heads, options.kernel, options.attention_dropout)
            return AttentionLayer(options.dim, exact)
        landmarks = options.landmarks or options.dim // 2
        return AttentionLayer(
            options.dim,
            NystromAttention(
                options.dim, options.heads, landmarks, options.iterations, options.kernel, options.attention_dropout
            ),
        )

    def _initialise(self) -> None:
        """As published; the baseline class starts from a tiny class token and Xavier convolutions."""
        initialise(self)
        is_baseline = self.config.padding == "class"
        nn.init.normal_(self.class_token, std=1e-6 if is_baseline else 1.0)
        for layer in self.modules():
            if is_baseline and isinstance(layer, nn.Conv2d):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(act(W x_i + b))."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Logits of the class token; the bag embedding (D,) is the class token after the last norm."""
        return self._aggregate(tokens, instances=True)

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`: without instances the class token's attention is not read out."""
        embedding = self.embedding()
        return None if embedding is None else self._aggregate(embed(rows, embedding), instances)

    def _aggregate(self, tokens: Float[Tensor, "instances dim"], instances: bool) -> MILOutput:
        count = len(tokens)
        sequence = torch.cat([self.class_token, wrap_to_square(tokens) if self.config.padding == "class" else tokens])
        del tokens  # what is not needed any more makes room: a sequence of a large bag is the largest thing here
        first = self.layer1.prepare(sequence, self.config.class_row if instances else None)
        sequence = self.layer1(sequence, first, len(sequence))
        rows, scores = dict[str, Tensor](), None
        if first.row is not None:
            rows["attention_layer1"] = row = first.row[:, :count]
            scores = self._instance_scores(first, row)
        del first
        sequence = torch.cat([sequence[:1], self.position(sequence[1:])])
        is_read = instances and (not (self.is_teacher or self.training) or self.config.attention_layer == "last")
        last = self.layer2.prepare(sequence, self.config.class_row if is_read else None)
        embedding = self.norm(self.layer2(sequence, last, 1))[0]
        logits = self.classifier(embedding)
        if not instances:
            return MILOutput(logits, softmax_probabilities(logits), None, None, embedding)
        if last.row is not None:
            rows["attention_layer2"] = last.row[:, :count]
        return MILOutput(
            logits=logits,
            probabilities=softmax_probabilities(logits),
            attention=rows[f"attention_layer{1 if self.config.attention_layer == 'first' else 2}"],
            instance_scores=scores,
            bag_embedding=embedding,
            extras={} if self.training else rows,
        )

    @torch.no_grad()
    def _instance_scores(
        self, prepared: Prepared, row: Float[Tensor, "heads instances"]
    ) -> Float[Tensor, "instances classes"]:
        """MHIM v2's class-aware score before its softmax: classify each instance's share of the attention output.

        Output projection and classifier are both linear and are joined first, and classify the values before they
        are weighed; the classifier's bias, the same for every instance, is left out (spec section 6.2; it adds one
        number to all classes as published).
        """
        start = prepared.padding + 1
        values = prepared.values[:, start : start + row.shape[1]]
        output = self.layer1.attention.to_out
        joined = (self.classifier.weight @ output.weight).unflatten(1, (len(values), -1)).permute(1, 2, 0)
        weighed = row[..., None] * (values @ joined.to(values.dtype))
        return weighed.sum(dim=0) + self.classifier.weight @ output.bias
