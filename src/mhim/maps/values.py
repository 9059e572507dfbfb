"""What an aggregator says about the tiles of one slide: attention, probability, contribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mhim.bag import Bag
from mhim.maps.config import MapKind
from mhim.models.contract import MILModel, MILOutput

if TYPE_CHECKING:
    from torch import Tensor

WHY_MISSING: dict[MapKind, str] = {
    "attention": "this aggregator gives no attention",
    "attention-score": "this aggregator's attention is no softmax of one score a tile",
    "probability": "this aggregator scores no single instance",
    "contribution": "this aggregator's logits are no sum over instances",
}

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TileValues:
    """The maps of one slide by one model, before they have a place.

    Attributes:
        class_index: the class that the maps speak of: the positive one of two, else the predicted one.
        slide_probabilities: (C,) of the slide.
        attention: (N,) as the model gives it (sums to 1 for a softmax); the branch of ``class_index`` where
            there is one branch a class, else the mean over branches. None without attention.
        probabilities: (N, C) class probability of each instance, or None.
        contribution: (N,) signed part of ``score`` that each instance brings, or None.
        bias: the part of ``score`` that no instance brings.
        score: ``contribution.sum() + bias``: the log-odds of the positive class (logit 1 - logit 0) for two
            classes, whose softmax depends on nothing else; the logit of ``class_index`` for more.
        attention_score: (N,) what the softmax of the attention is taken of, of the same branch; None where the
            model has no such score.
    """

    class_index: int
    slide_probabilities: Values
    attention: Values | None
    probabilities: Values | None
    contribution: Values | None
    bias: float | None
    score: float
    attention_score: Values | None = None

    @property
    def n_tiles(self) -> int:
        """Tiles with a value of some map, 0 where the model has none."""
        return max((len(part) for kind in WHY_MISSING if (part := self.of(kind)) is not None), default=0)

    def of(self, kind: MapKind) -> Values | None:
        """(N,) values of a map, None when the model has none."""
        if kind == "probability":
            return None if self.probabilities is None else self.probabilities[:, self.class_index]
        if kind == "attention-score":
            return self.attention_score
        return self.attention if kind == "attention" else self.contribution


def tile_values(model: MILModel, bag: Bag) -> TileValues:
    """Run a model in evaluation mode on a bag and read its maps off the result."""
    import torch

    model.eval()
    with torch.inference_mode():
        return read_values(model(torch.from_numpy(bag.features)))


def read_values(output: MILOutput) -> TileValues:
    """The maps in an aggregator's result."""
    probabilities = _array(output.probabilities)
    logits = _array(output.logits)
    two = len(probabilities) == 2
    index = 1 if two else int(probabilities.argmax())

    def towards(per_class: Values) -> Values:
        return per_class[..., 1] - per_class[..., 0] if two else per_class[..., index]

    parts = None if output.contributions is None else towards(_array(output.contributions))
    bias = None if output.bias is None else float(towards(_array(output.bias)))
    instance, raw = output.instance_probabilities, output.extras.get("attention_logits")
    return TileValues(
        class_index=index,
        slide_probabilities=probabilities,
        attention=None if output.attention is None else _of_branch(_array(output.attention), index, len(logits)),
        probabilities=None if instance is None else _array(instance),
        contribution=parts,
        bias=bias,
        score=float(towards(logits)),
        attention_score=None if raw is None else _of_branch(_array(raw), index, len(logits)),
    )


def tile_table(bag: Bag, tile_px0: float, values: TileValues, classes: tuple[str, ...]) -> pd.DataFrame:
    """Raw values of every tile, one row each.

    Columns: x_px0, y_px0, width_px0, height_px0, attention, attention_score, prob_<class>..., contribution. Maps
    that the model does not have are left out; the tile's annotated share is added where it is known.

    Args:
        bag: the tiles, with coordinates.
        tile_px0: side of a tile, level-0 pixels.
        values: the maps.
        classes: class names in index order.
    """
    assert bag.xy_px0 is not None
    columns: dict[str, Any] = {
        "x_px0": bag.xy_px0[:, 0],
        "y_px0": bag.xy_px0[:, 1],
        "width_px0": tile_px0,
        "height_px0": tile_px0,
    }
    if values.attention is not None:
        columns["attention"] = values.attention
    if values.attention_score is not None:
        columns["attention_score"] = values.attention_score
    if values.probabilities is not None:
        columns |= {f"prob_{name}": values.probabilities[:, index] for index, name in enumerate(classes)}
    if values.contribution is not None:
        columns["contribution"] = values.contribution
    if bag.annotation_fraction is not None:
        columns["annotation_fraction"] = bag.annotation_fraction
    return pd.DataFrame(columns)


def _of_branch(attention: Values, index: int, n_classes: int) -> Values:
    return attention[index] if len(attention) == n_classes else attention.mean(axis=0)


def _array(tensor: Tensor) -> Values:
    return tensor.detach().double().cpu().numpy()
