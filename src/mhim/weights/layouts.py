"""How the reference programs name their tensors, and what the shapes say about the model.

A layout says for one kind of published checkpoint how each tensor is called here, and reads the configuration
off the tensors. What they do not tell (activations, dropout, TransMIL's padding) is that program's own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mhim.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Layout:
    """One kind of published checkpoint.

    Attributes:
        title: what it is, in words.
        signature: a tensor that no other kind has.
        first: the tensor whose last axis is the feature width.
        last: the tensor whose first axis is the number of outputs.
        names: published tensor name -> ours; may depend on which tensors are there.
        config: the aggregator's configuration, from tensors that are complete.
        ignored: tensors that carry no weights.
    """

    title: str
    signature: str
    first: str
    last: str
    names: Callable[[Tensors], dict[str, str]]
    config: Callable[[Tensors], dict[str, Any]]
    ignored: frozenset[str] = field(default_factory=frozenset)


def recognise(tensors: Tensors) -> Layout | None:
    """The layout whose signature is among the tensors."""
    return next((layout for layout in LAYOUTS if layout.signature in tensors), None)


def nearest(tensors: Tensors) -> Layout:
    """The layout that shares most tensor names, or failing that most ends of names (another prefix)."""

    def likeness(layout: Layout) -> tuple[int, int]:
        names = layout.names(tensors)
        ends = {_end(name) for name in names}
        return len(set(names) & set(tensors)), len(ends & {_end(name) for name in tensors})

    return max(LAYOUTS, key=likeness)


def dimension(tensors: Tensors, name: str, axis: int) -> int:
    """Size of one axis of a tensor.

    Raises:
        CheckpointError: the tensor has no such axis.
    """
    shape = tuple(tensors[name].shape)
    if not -len(shape) <= axis < len(shape):
        raise CheckpointError(f"tensor {name} has shape {shape}, which no known checkpoint has")
    return shape[axis]


def _end(name: str) -> str:
    return ".".join(name.split(".")[-3:])


def _layers(stems: Mapping[str, str], bias: bool = True, prefix: str = "") -> dict[str, str]:
    """Tensor names of whole layers, from published stems to ours."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{prefix}{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in stems.items() for kind in kinds}


_MHIM_ENDS = {"patch_to_emb.0": "projection.0", "predictor": "classifier"}
_ENCODER = "online_encoder."

# AB-MIL inside MHIM v1; the released class cannot even build the gated form, so gating is read off the names

_PLAIN = f"{_ENCODER}attention.attention.0"
_GATED = f"{_ENCODER}attention.attention_a.0"


def _is_gated(tensors: Tensors) -> bool:
    return any(name.startswith(f"{_ENCODER}attention.attention_") for name in tensors)


def _abmil_names(tensors: Tensors) -> dict[str, str]:
    plain = {"attention.0": "value", "attention.2": "score"}
    gated = {"attention_a.0": "value", "attention_b.0": "gate", "attention_c": "score"}
    parts = gated if _is_gated(tensors) else plain
    stems = {f"{_ENCODER}attention.{theirs}": f"attention.{ours}" for theirs, ours in parts.items()}
    is_biased = any(f"{stem}.bias" in tensors for stem in stems)
    return _layers(_MHIM_ENDS) | _layers(stems, bias=is_biased)


def _abmil_config(tensors: Tensors) -> dict[str, Any]:
    value = _GATED if _is_gated(tensors) else _PLAIN
    return {
        "name": "abmil",
        "dim": dimension(tensors, f"{value}.weight", 1),
        "attention_dim": dimension(tensors, f"{value}.weight", 0),
        "attention_bias": f"{value}.bias" in tensors,
        "gated": _is_gated(tensors),
    }


# DSMIL inside MHIM v1, and DSMIL's own repository

_DSMIL_BAG = {"b_classifier.q.0": "query.0", "b_classifier.q.2": "query.2", "b_classifier.fcc": "fusion"}


def _dsmil_names(tensors: Tensors) -> dict[str, str]:
    stems = {"i_classifier.0": "instance_classifier", "b_classifier.v.1": "value.1", **_DSMIL_BAG}
    ends = {"patch_to_emb.0": "projection.0", "predictor": "predictor"}
    return _layers(ends) | _layers(stems, prefix=_ENCODER)


def _dsmil_config(tensors: Tensors) -> dict[str, Any]:
    query = f"{_ENCODER}b_classifier.q.0.weight"
    return {"name": "dsmil", "dim": dimension(tensors, query, 1), "query_dim": dimension(tensors, query, 0)}


def _dsmil_own_names(tensors: Tensors) -> dict[str, str]:
    return _layers({"i_classifier.fc.0": "instance_classifier", **_DSMIL_BAG})


def _dsmil_own_config(tensors: Tensors) -> dict[str, Any]:
    query = "b_classifier.q.0.weight"
    sizes = {"dim": dimension(tensors, query, 1), "query_dim": dimension(tensors, query, 0)}
    return {
        "name": "dsmil",
        **sizes,
        "projection": "none",
        "value": "identity",
        "output": "sigmoid",
        "predictor": False,
    }


# CLAM-SB

_CLAM_ATTENTION = "attention_net.3.attention"


def _clam_names(tensors: Tensors) -> dict[str, str]:
    stems = {
        "attention_net.0": "projection.0",
        f"{_CLAM_ATTENTION}_a.0": "attention.value",
        f"{_CLAM_ATTENTION}_b.0": "attention.gate",
        f"{_CLAM_ATTENTION}_c": "attention.score",
        "classifiers": "classifier",
    }
    classes = dimension(tensors, "classifiers.weight", 0) if "classifiers.weight" in tensors else 2
    stems |= {f"instance_classifiers.{index}": f"instance_classifiers.{index}" for index in range(classes)}
    return _layers(stems)


def _clam_config(tensors: Tensors) -> dict[str, Any]:
    value = f"{_CLAM_ATTENTION}_a.0.weight"
    return {"name": "clam-sb", "dim": dimension(tensors, value, 1), "attention_dim": dimension(tensors, value, 0)}


# TransMIL inside MHIM v1


def _transmil_names(tensors: Tensors) -> dict[str, str]:
    stems = {
        "norm": "norm",
        "pos_embedding.proj": "position.conv7",
        "pos_embedding.proj1": "position.conv5",
        "pos_embedding.proj2": "position.conv3",
    }
    plain = {}
    for layer in ("layer1", "layer2"):
        stems |= {f"{layer}.norm": f"{layer}.norm", f"{layer}.attn.to_out.0": f"{layer}.attention.to_out"}
        plain |= {
            f"{layer}.attn.to_qkv": f"{layer}.attention.to_qkv",
            f"{layer}.attn.res_conv": f"{layer}.attention.value_convolution",
        }
    encoder = _layers(stems, prefix=_ENCODER) | _layers(plain, bias=False, prefix=_ENCODER)
    return _layers(_MHIM_ENDS) | encoder | {f"{_ENCODER}cls_token": "class_token"}


def _transmil_config(tensors: Tensors) -> dict[str, Any]:
    convolution = f"{_ENCODER}layer1.attn.res_conv.weight"
    return {
        "name": "transmil",
        "dim": dimension(tensors, "predictor.weight", 1),
        "heads": dimension(tensors, convolution, 0),
        "kernel": dimension(tensors, convolution, 2),
    }


# DTFD-MIL, its four parts in one file


def _dtfd_names(tensors: Tensors) -> dict[str, str]:
    attention = {"attention_V.0": "value", "attention_U.0": "gate", "attention_weights": "score"}
    stems = {}
    for prefix, tier in (("", "tier1"), ("att_classifier.", "tier2")):
        stems |= {f"{prefix}attention.{theirs}": f"{tier}.attention.{ours}" for theirs, ours in attention.items()}
        stems[f"{prefix}classifier.fc"] = f"{tier}.classifier"
    return _layers(stems) | {"dim_reduction.fc1.weight": "projection.0.weight"}


def _dtfd_config(tensors: Tensors) -> dict[str, Any]:
    value = "attention.attention_V.0.weight"
    return {"name": "dtfd", "dim": dimension(tensors, value, 1), "attention_dim": dimension(tensors, value, 0)}


def _mhim(title: str, signature: str, names: Callable[[Tensors], dict[str, str]], config: Callable) -> Layout:
    return Layout(title, signature, "patch_to_emb.0.weight", "predictor.weight", names, config)


LAYOUTS: tuple[Layout, ...] = (
    _mhim("MHIM v1 AB-MIL with plain attention", f"{_PLAIN}.weight", _abmil_names, _abmil_config),
    _mhim("MHIM v1 AB-MIL with gated attention", f"{_GATED}.weight", _abmil_names, _abmil_config),
    _mhim("MHIM v1 DSMIL", f"{_ENCODER}b_classifier.q.0.weight", _dsmil_names, _dsmil_config),
    _mhim("MHIM v1 TransMIL", f"{_ENCODER}layer1.attn.to_qkv.weight", _transmil_names, _transmil_config),
    Layout(
        "DSMIL-repository aggregator",
        signature="i_classifier.fc.0.weight",
        first="i_classifier.fc.0.weight",
        last="i_classifier.fc.0.weight",
        names=_dsmil_own_names,
        config=_dsmil_own_config,
    ),
    Layout(
        "CLAM-SB",
        signature=f"{_CLAM_ATTENTION}_a.0.weight",
        first="attention_net.0.weight",
        last="classifiers.weight",
        names=_clam_names,
        config=_clam_config,
        ignored=frozenset({"instance_loss_fn.labels"}),
    ),
    Layout(
        "DTFD-MIL",
        signature="dim_reduction.fc1.weight",
        first="dim_reduction.fc1.weight",
        last="classifier.fc.weight",
        names=_dtfd_names,
        config=_dtfd_config,
    ),
)
