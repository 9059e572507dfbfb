"""AB-MIL: attention-based pooling, plain and gated (Ilse et al., ICML 2018)."""

from __future__ import annotations

from types import MappingProxyType

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mhim.config import ComponentConfig
from mhim.kernels import Embedding, Rows, Segments, exact_linear, pool, segment_pool
from mhim.models.contract import MILModel, MILOutput, initialise, models, softmax_probabilities
from mhim.models.layers import Activation, AttentionScores, Projection


@models.register("abmil")
class ABMIL(MILModel):
    """Bag embedding F = sum_i a_i z_i with a = softmax_i(e_i), then a linear classifier (equations 7 to 9).

    Defaults are those of MHIM v1 on CAMELYON16: plain attention with ReLU and without bias. Set
    ``gated`` for the TCGA variant. The bag logits decompose over instances:
    logit_c = b_c + sum_i w_c . (a_i z_i). ``extras``: ``attention_logits`` (1, N), e before the softmax.
    """

    class Config(ComponentConfig):
        """Options of AB-MIL."""

        dim: int = Field(512, ge=1, description="width of the instance tokens")
        activation: Activation = Field("relu", description="activation of the projection")
        dropout: float = Field(0.25, ge=0, lt=1, description="dropout after the projection")
        attention_dim: int = Field(128, ge=1, description="width of the attention branch")
        attention_activation: Activation = Field("relu", description="activation of the attention branch")
        attention_bias: bool = Field(False, description="biases in the attention branch")
        gated: bool = Field(False, description="gated attention")

    config: Config
    paper = "Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018"
    licence = "written from the paper; MHIM's own program carries no licence and no line of it is used"
    variants = MappingProxyType({"gated": {"gated": True}})
    packs = True

    def __init__(self, config: Config, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        self.projection = Projection(in_dim, config.dim, config.activation, config.dropout)
        self.attention = AttentionScores(
            config.dim, config.attention_dim, 1, config.attention_activation, config.gated, config.attention_bias
        )
        self.classifier = nn.Linear(config.dim, n_classes)
        initialise(self)

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(act(W x_i + b))."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Attention-pooled logits, and each instance's contribution w_c . (a_i z_i)."""
        raw = self.attention(tokens)
        embedding = raw.softmax(dim=-1) @ tokens
        return self._output(raw, embedding, tokens @ self.classifier.weight.T)

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`."""
        embedding, branches = self.embedding(), self.attention.branches()
        if embedding is None or branches is None:
            return None
        return self._output(
            *pool(rows, embedding, branches, self.classifier.weight, instances, None, self.activation_bytes)
        )

    def aggregate_bags(self, tokens: Float[Tensor, "rows dim"], segments: Segments, instances: bool) -> list[MILOutput]:
        """See :meth:`MILModel.aggregate_bags`: scores and sums of all bags in one pass."""
        raw = self.attention.of_rows(tokens)
        pooled = segment_pool(raw, tokens, segments)
        if not instances:
            return [self._output(None, embedding, None) for embedding in pooled]
        evidence = exact_linear(tokens, self.classifier.weight)
        parts = zip(segments.split(raw, 1), pooled, segments.split(evidence), strict=True)
        return [self._output(*part) for part in parts]

    def _output(
        self,
        raw: Float[Tensor, "1 instances"] | None,
        embedding: Float[Tensor, "1 dim"],
        evidence: Float[Tensor, "instances classes"] | None,
    ) -> MILOutput:
        logits = self.classifier(embedding[0])
        attention = contributions = None
        if raw is not None and evidence is not None:
            attention = raw.softmax(dim=-1)
            contributions = attention.T * evidence
        return MILOutput(
            logits=logits,
            probabilities=softmax_probabilities(logits),
            attention=attention,
            instance_scores=contributions,
            bag_embedding=embedding[0],
            contributions=contributions,
            bias=None if contributions is None else self.classifier.bias,
            extras={} if raw is None else {"attention_logits": raw},
        )
