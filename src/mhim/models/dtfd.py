"""DTFD-MIL: double-tier feature distillation over pseudo-bags (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mhim.config import ComponentConfig
from mhim.kernels import Branches, Embedding, Rows, draw_seed, pool, tokens_at
from mhim.models.contract import MILModel, MILOutput, initialise, models, softmax_probabilities
from mhim.models.layers import Activation, AttentionScores, Projection

Distillation = Literal["maxs", "maxmins", "mas", "afs"]


class AttentionClassifier(nn.Module):
    """Gated attention pooling and a linear classifier: one tier of DTFD."""

    def __init__(self, dim: int, attention_dim: int, n_classes: int) -> None:
        super().__init__()
        self.attention = AttentionScores(dim, attention_dim, 1, "tanh", gated=True, bias=True)
        self.classifier = nn.Linear(dim, n_classes)


@dataclass(frozen=True)
class PseudoBag:
    """One pseudo-bag after the first tier.

    Attributes:
        index: positions of its n instances in the bag.
        attention_logits: the first tier's attention before its softmax.
        attention: its softmax inside the pseudo-bag.
        evidence: tokens times the second tier's classifier, without gradient.
        pooled: the attention-pooled feature.
        scores: contribution of each instance to each of the pseudo-bag's logits, w_c . (a_i z_i).
        logits: of the pseudo-bag.
    """

    index: Int[Tensor, " n"]
    attention_logits: Float[Tensor, " n"]
    attention: Float[Tensor, " n"]
    evidence: Float[Tensor, "n classes"]
    pooled: Float[Tensor, " dim"]
    scores: Float[Tensor, "n classes"]
    logits: Float[Tensor, " classes"]

    @property
    def probabilities(self) -> Float[Tensor, "n classes"]:
        """Class probability of each instance: softmax over classes of ``scores``."""
        return self.scores.softmax(dim=-1)


@models.register("dtfd")
class DTFD(MILModel):
    """The bag is cut into pseudo-bags; each is classified (tier 1) and hands up features to tier 2.

    Tier 1 pools each pseudo-bag by attention (equations 1 and 2) and classifies it; the class-activation
    derivation gives its instances class probabilities (equations 6 to 8). What is handed up
    (``distillation``): ``maxs`` the token of the most probable instance of the last class, ``maxmins`` also the
    least probable one's, ``mas`` the most attended one's, ``afs`` the attention-pooled feature. Tier 2
    pools these by an attention of its own. Gradients of tier 2 stop at the handed-up features, which is what
    the published two optimisers come to.

    A bag is cut by the order of its instances, near-equally, so the result is a function of the bag. The
    published training cuts anew at random in every step: ``shuffles_in_training`` says so to whoever trains.
    (The published test shuffles too and is therefore random.) ``interleaved`` gives every pseudo-bag a sample
    of the whole slide, as a random cut does; ``contiguous`` cuts like NumPy's ``array_split``.

    Every distilled feature is a weighted sum of tokens, so the tier-2 logits decompose: ``attention`` (1, N) is
    the weight with which each token enters the bag embedding. ``instance_scores`` and
    ``instance_probabilities`` are tier 1's, as published. MHIM ranks by tier 1's attention over the whole bag.

    ``extras``: ``tier1_logits`` (G, C), ``pseudo_bags`` (tuple of :class:`PseudoBag`), ``pseudo_features``
    (S, D), ``attention_logits`` (1, N) of tier 1.
    """

    class Config(ComponentConfig):
        """Options of DTFD-MIL."""

        dim: int = Field(512, ge=1, description="width of the instance tokens")
        activation: Activation = Field("relu", description="activation of the projection (which has no bias)")
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout after the projection; 0.25 in MHIM's comparison")
        attention_dim: int = Field(128, ge=1, description="width of both attention networks")
        pseudo_bags: int = Field(4, ge=1, description="pseudo-bags per bag, at most one per instance")
        instances: int = Field(1, ge=1, description="instances each pseudo-bag hands up (not for afs)")
        distillation: Distillation = Field("afs", description="what a pseudo-bag hands up to the second tier")
        split: Literal["interleaved", "contiguous"] = Field("interleaved", description="how the bag's order is cut")
        shuffle: bool = Field(True, description="cut at random in training")

    config: Config
    paper = "Zhang et al., DTFD-MIL: Double-Tier Feature Distillation, CVPR 2022"
    licence = "reference program: MIT; written from the paper"
    is_permutation_equivariant = False

    def __init__(self, config: Config, in_dim: int, n_classes: int) -> None:
        super().__init__(config, in_dim, n_classes)
        self.shuffles_in_training = config.shuffle
        self.projection = Projection(in_dim, config.dim, config.activation, config.dropout, bias=False)
        self.tier1 = AttentionClassifier(config.dim, config.attention_dim, n_classes)
        self.tier2 = AttentionClassifier(config.dim, config.attention_dim, n_classes)
        initialise(self)

    def project(self, features: Float[Tensor, "instances in_dim"]) -> Float[Tensor, "instances dim"]:
        """z_i = drop(act(W x_i)), without a bias."""
        return self.projection(features)

    def embedding(self) -> Embedding | None:
        """See :meth:`MILModel.embedding`."""
        return self.projection.embedding(self.feature_mean, self.feature_scale)

    def aggregate(self, tokens: Float[Tensor, "instances dim"]) -> MILOutput:
        """Both tiers."""
        raw = self.tier1.attention(tokens)
        places = self._cut(len(tokens), tokens.device)
        evidence = tokens @ self._evidence_weight().T
        bags = []
        for index in places:
            pooled = raw[0, index].softmax(dim=-1) @ tokens[index]
            bags.append(self._tier1(index, raw[0, index], pooled, evidence[index]))
        features = torch.cat(
            [self._handed_up(bag, lambda places, index=bag.index: tokens[index[places]]) for bag in bags]
        )
        return self._tier2(tuple(bags), features.detach())

    def fused(self, rows: Rows, instances: bool) -> MILOutput | None:
        """See :meth:`MILModel.fused`: every pseudo-bag is pooled by itself, in one pass over its rows."""
        embedding, branches = self.embedding(), self.tier1.attention.branches()
        if embedding is None or branches is None:
            return None
        if not instances and self.config.distillation == "afs":
            return self._alone(rows, embedding, branches)
        evidence_weight, bags, features = self._evidence_weight(), [], []
        for index in self._cut(len(rows), rows.device):
            part, seed = rows.subset(index), draw_seed() if embedding.rate else 0
            budget = int(self.activation_bytes * len(index) / len(rows))
            raw, pooled, evidence = pool(part, embedding, branches, evidence_weight, True, seed, budget)
            assert raw is not None
            assert evidence is not None
            bags.append(bag := self._tier1(index, raw[0], pooled[0], evidence))
            features.append(self._handed_up(bag, partial(tokens_at, part, embedding=embedding, seed=seed)))
        return self._tier2(tuple(bags), torch.cat(features).detach())

    def _alone(self, rows: Rows, embedding: Embedding, branches: Branches) -> MILOutput:
        """The bag's result alone, where pseudo-bags hand up what they pooled."""
        parts = []
        for place in self._places(len(rows)):
            part, budget = rows.every(place), self.activation_bytes // min(self.config.pseudo_bags, len(rows))
            parts.append(pool(part, embedding, branches, instances=False, budget=budget).embedding)
        pooled = torch.cat(parts)
        features = pooled.detach()
        summary = (self.tier2.attention(features).softmax(dim=-1) @ features)[0]
        logits = self.tier2.classifier(summary)
        extras = {"tier1_logits": self.tier1.classifier(pooled), "pseudo_features": features}
        return MILOutput(logits, softmax_probabilities(logits), None, None, summary, extras=extras)

    def _evidence_weight(self) -> Float[Tensor, "both dim"]:
        """Both tiers' classifiers; the second sees tokens without sending a gradient to them (section 3.4)."""
        return torch.cat([self.tier1.classifier.weight, self.tier2.classifier.weight])

    def _tier1(
        self,
        index: Int[Tensor, " n"],
        raw: Float[Tensor, " n"],
        pooled: Float[Tensor, " dim"],
        evidence: Float[Tensor, "n both"],
    ) -> PseudoBag:
        attention = raw.softmax(dim=-1)
        first, second = evidence.split(self.n_classes, dim=1)
        return PseudoBag(
            index=index,
            attention_logits=raw,
            attention=attention,
            scores=attention[:, None] * first,
            evidence=second.detach(),
            pooled=pooled,
            logits=self.tier1.classifier(pooled),
        )

    def _tier2(self, bags: tuple[PseudoBag, ...], features: Float[Tensor, "features dim"]) -> MILOutput:
        order = torch.cat([bag.index for bag in bags]).argsort()
        share = self.tier2.attention(features).softmax(dim=-1)
        embedding = (share @ features)[0]
        classifier = self.tier2.classifier
        logits = classifier(embedding)
        attention = self._weights(bags, share[0])[:, order]
        scores, evidence = (
            torch.cat(part)[order] for part in zip(*((b.scores, b.evidence) for b in bags), strict=True)
        )
        raw = torch.cat([bag.attention_logits for bag in bags])[order][None]
        return MILOutput(
            logits=logits,
            probabilities=softmax_probabilities(logits),
            attention=attention,
            instance_scores=scores,
            bag_embedding=embedding,
            contributions=attention.T * evidence,
            bias=classifier.bias,
            instance_probabilities=scores.softmax(dim=-1),
            mask_scores=raw.softmax(dim=-1),
            extras={
                "tier1_logits": torch.stack([bag.logits for bag in bags]),
                "pseudo_bags": bags,
                "pseudo_features": features,
                "attention_logits": raw,
            },
        )

    def _weights(self, bags: tuple[PseudoBag, ...], share: Float[Tensor, " features"]) -> Float[Tensor, "1 instances"]:
        """The weight with which each token enters the bag embedding, pseudo-bag after pseudo-bag."""
        rows, at = [], 0
        for bag in bags:
            if self.config.distillation == "afs":
                rows.append(share[at] * bag.attention.detach())
                at += 1
            else:
                chosen = self._chosen(bag)
                part = share[at : at + len(chosen)]
                rows.append(torch.zeros_like(bag.attention).index_add(0, chosen, part))
                at += len(chosen)
        return torch.cat(rows)[None]

    def _handed_up(self, bag: PseudoBag, tokens_of: Callable[[Tensor], Tensor]) -> Float[Tensor, "features dim"]:
        """The features of a pseudo-bag that the second tier sees."""
        return bag.pooled[None] if self.config.distillation == "afs" else tokens_of(self._chosen(bag))

    def losses(self, output: MILOutput, label: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the slide label: the pseudo-bags' mean, and tier 2's."""
        tier1 = output.extras["tier1_logits"]
        return {
            "tier1": F.cross_entropy(tier1, label.expand(len(tier1))),
            "tier2": F.cross_entropy(output.logits[None], label[None]),
        }

    def trained_logits(self, output: MILOutput) -> dict[str, tuple[float, Float[Tensor, "rows classes"]]]:
        """The pseudo-bags' logits, and tier 2's."""
        return {"tier1": (1.0, output.extras["tier1_logits"]), "tier2": (1.0, output.logits[None])}

    def _cut(self, count: int, device: torch.device) -> list[Tensor]:
        positions = torch.arange(count, device=device)
        return [positions[place] for place in self._places(count)]

    def _places(self, count: int) -> list[slice]:
        """Where the pseudo-bags lie among the instances; their sizes differ by one at most."""
        groups = min(self.config.pseudo_bags, count)
        if self.config.split == "interleaved":
            return [slice(start, None, groups) for start in range(groups)]
        least, more = divmod(count, groups)
        ends = list(accumulate(least + (group < more) for group in range(groups)))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _chosen(self, bag: PseudoBag) -> Int[Tensor, " chosen"]:
        """Places in the pseudo-bag of the instances that it hands up."""
        ranked_by = bag.attention if self.config.distillation == "mas" else bag.probabilities[:, -1]
        size = min(self.config.instances, len(bag.index))
        order = ranked_by.argsort(descending=True, stable=True)
        if self.config.distillation == "maxmins":
            return torch.cat([order[:size], order[-size:]])
        return order[:size]
