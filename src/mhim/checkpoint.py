"""The project's own model file: safetensors with everything needed to build the model again.

The file holds the tensors of one aggregator, and as metadata its configuration, feature width and classes.
It runs no code on loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhim.artefacts import atomic_path, sort_safetensors_header
from mhim.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mhim.models.contract import MILModel

FORMAT = "mhim-model-1"
_JSON_KEYS = ("model", "in_dim", "n_classes", "classes")


def save_model(path: Path, model: MILModel, classes: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
    """Write a model file, atomically.

    Args:
        path: the file, ``model.safetensors``.
        model: the aggregator as it is deployed.
        classes: one name per output of the model, in their order.
        extra: further texts to keep with the file (fold, source, ...).

    Raises:
        CheckpointError: another number of class names than outputs, a class of model that is not
            registered, or an ``extra`` key that the format uses itself.
    """
    from safetensors.torch import save_file

    if len(classes) != model.n_classes:
        raise CheckpointError(f"{path}: {len(classes)} class names for a model of {model.n_classes} outputs")
    taken = sorted({"format", *_JSON_KEYS} & set(extra or {}))
    if taken:
        raise CheckpointError(f"{path}: the metadata keys {', '.join(taken)} are the format's own")
    own = {
        "model": {**model.config.model_dump(mode="json"), "name": _registered_name(model)},
        "in_dim": model.in_dim,
        "n_classes": model.n_classes,
        "classes": list(classes),
    }
    metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in own.items()}, **(extra or {})}
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        sort_safetensors_header(temporary)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a model file says about itself: ``model``, ``in_dim``, ``n_classes``, ``classes``, and the extra texts.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or was not written by :func:`save_model`.
    """
    metadata: dict[str, Any] = dict(_header(path))
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a model file of mhim; bring published weights in with 'mhim import-weights {path} -o DIR'"
        )
    try:
        return metadata | {key: json.loads(metadata[key]) for key in _JSON_KEYS}
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged metadata ({error!r})") from None


def is_model_file(path: Path) -> bool:
    """Whether the file was written by :func:`save_model`."""
    try:
        return _header(path).get("format") == FORMAT
    except CheckpointError:
        return False


def load_model(path: Path, device: str = "cpu") -> MILModel:
    """The model in a file, in evaluation mode.

    Args:
        path: a file that :func:`save_model` wrote.
        device: where to put the model.

    Raises:
        CheckpointError: not such a file, an aggregator or option that this program does not know, or
            tensors that do not fit the configuration.
    """
    import torch
    from safetensors.torch import load_file

    from mhim.models import models

    metadata = read_metadata(path)
    try:
        config = models.parse(metadata["model"])
        with torch.random.fork_rng(devices=[]):
            model = models.build(config, metadata["in_dim"], metadata["n_classes"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; if it is a plugin's, load it with --plugin") from None
    load_tensors(model, load_file(path), path)
    return model.to(device).eval()


def load_tensors(model: MILModel, tensors: Mapping[str, Any], source: object) -> None:
    """Put tensors into a model, strictly; the model takes over their dtype.

    Raises:
        CheckpointError: lists every missing, unexpected and wrongly shaped tensor; names ``source``.
    """
    if {"feature_mean", "feature_scale"} <= set(tensors):
        reference = next(model.parameters())
        model.standardise(reference.new_zeros(model.in_dim), reference.new_ones(model.in_dim))
    own = model.state_dict()
    faults = key_faults(own, tensors)
    faults += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if faults:
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}: {'; '.join(faults)}")
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtype=dtypes.pop())
    model.load_state_dict(dict(tensors))


def key_faults(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is missing and what is unexpected among tensor names; empty when they agree."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    faults = [f"missing {', '.join(missing)}"] if missing else []
    return faults + ([f"unexpected {', '.join(unexpected)}"] if unexpected else [])


def _registered_name(model: MILModel) -> str:
    from mhim.models import models

    for name in models:
        if models[name] is type(model):
            return name
    raise CheckpointError(f"{type(model).__name__} is not registered as a model, so it could not be loaded again")


def _header(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
