"""Which papers can be reproduced: their networks, recipes, published values, and what those were chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mhim.errors import ConfigError
from mhim.papers import dsmil2021, ilse2018
from mhim.papers.dsmil2021 import DualStreams
from mhim.papers.ilse2018 import FoldNetworks, Pooling
from mhim.papers.repetition import Build, Recipe


@dataclass(frozen=True)
class Paper:
    """One paper's experiment on the classic sets.

    Attributes:
        name: as on the command line.
        title: what it is.
        networks: name of each network -> how it is made.
        recipes: by set.
        default: for other sets.
        published: (accuracy, printed error) by set and network.
        optimiser: in words.
        unverified: what could not be checked against the paper.
        selects_on_test: whether the test fold chose epoch and threshold of the published values. They are then compared
            with numbers made in the same way, which are marked and are not what a model is worth.
        has_dropout: whether the networks heed the recipe's dropout.
    """

    name: str
    title: str
    networks: Mapping[str, Build]
    recipes: Mapping[str, Recipe]
    default: Recipe
    published: Mapping[tuple[str, str], tuple[float, float]]
    optimiser: str
    unverified: str
    selects_on_test: bool
    has_dropout: bool

    def recipe(self, data: str) -> Recipe:
        """Of a set by its name."""
        return self.recipes.get(data, self.default)


def _attention(
    pooling: Pooling, in_dim: int, positive_weight: Tensor, recipe: Recipe, generator: torch.Generator
) -> FoldNetworks:
    return FoldNetworks(len(positive_weight), in_dim, pooling, recipe, generator)


PAPERS = {
    each.name: each
    for each in (
        Paper(
            name="ilse2018",
            title="AB-MIL and gated AB-MIL, ICML 2018",
            networks={"attention": partial(_attention, "attention"), "gated": partial(_attention, "gated")},
            recipes=ilse2018.RECIPES,
            default=ilse2018.DEFAULT,
            published=ilse2018.PUBLISHED,
            optimiser="Gradient descent with momentum 0.9",
            unverified=ilse2018.UNVERIFIED,
            selects_on_test=False,
            has_dropout=True,
        ),
        Paper(
            name="dsmil2021",
            title="DSMIL, CVPR 2021",
            networks={"dsmil": DualStreams},
            recipes=dsmil2021.RECIPES,
            default=dsmil2021.DEFAULT,
            published=dsmil2021.PUBLISHED,
            optimiser="Adam with betas 0.5 and 0.9, cosine to 0",
            unverified=dsmil2021.UNVERIFIED,
            selects_on_test=True,
            has_dropout=False,
        ),
    )
}


def paper(name: str) -> Paper:
    """The paper of a name.

    Raises:
        ConfigError: no such paper; lists the known ones.
    """
    if name not in PAPERS:
        raise ConfigError(f"{name}: unknown paper (known: {', '.join(PAPERS)})")
    return PAPERS[name]
