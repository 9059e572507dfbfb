"""Trained weights: published checkpoints recognised by their keys, run folders, the project's own files.

The published files carry no licence for redistribution: bring your own copies.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mhim.artefacts as artefacts
from mhim.checkpoint import is_model_file, key_faults, load_model, load_tensors, read_metadata, save_model
from mhim.errors import ArtefactError, CheckpointError, ConfigError
from mhim.weights.layouts import LAYOUTS, Layout, dimension, nearest, recognise

if TYPE_CHECKING:
    from torch import Tensor

    from mhim.models import MILModel

__all__ = ["LAYOUTS", "MODEL_FILE", "Imported", "import_checkpoint", "import_weights", "load_weights"]

MODEL_FILE = "model.safetensors"
_CONTAINERS = ("model", "state_dict")
_WRAPPER = "module"
_UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)


@dataclass(frozen=True)
class Imported:
    """A published checkpoint that was recognised: what it is, and the model in evaluation mode."""

    title: str
    model: MILModel

    def describe(self) -> str:
        """One line: what was found."""
        from mhim.models import count_parameters

        config, outputs = self.model.config, self.model.n_classes
        options = config.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        told = ", ".join(f"{key}={value}" for key, value in options.items()) or "default options"
        return (
            f"{self.title}: model '{config.name}' ({told}), features {self.model.in_dim} wide, "
            f"{outputs} output{'s' if outputs > 1 else ''}, {count_parameters(self.model):,} numbers"
        )


def load_weights(path: Path | str, fold: int | None = None, device: str = "cpu") -> MILModel:
    """A trained model in evaluation mode, from wherever it lies.

    Args:
        path: a published checkpoint (``.pt``, ``.pth`` or ``.safetensors``), a ``model.safetensors`` of this
            project, or a folder that holds one: an import, a fold, or a run with its folds.
        fold: which fold of a run folder; needed when it has several.
        device: where to put the model.

    Raises:
        CheckpointError: nothing there, several folds and no choice, or weights that do not fit.
    """
    path = Path(path)
    if path.is_file() and fold is not None:
        raise CheckpointError(f"{path}: fold {fold} was asked for, but this is one file")
    file = _model_in(path, fold) if path.is_dir() else path
    if file.suffix == ".safetensors" and is_model_file(file):
        return load_model(file, device)
    return import_checkpoint(file).model.to(device)


def import_checkpoint(path: Path) -> Imported:
    """The model in a published checkpoint, in float32 and evaluation mode.

    Raises:
        CheckpointError: unreadable, of an unknown kind, or not complete; lists missing and unexpected tensors.
    """
    import torch

    from mhim.models import models

    tensors = _unwrapped(_read_tensors(path))
    layout = recognise(tensors)
    if layout is None:
        raise CheckpointError(f"{path}: no known kind of checkpoint; {_nearest_faults(tensors)}")
    tensors = {key: value for key, value in tensors.items() if key not in layout.ignored}
    names = layout.names(tensors)
    faults = key_faults(names, tensors)
    if faults:
        raise CheckpointError(f"{path}: has tensors of {layout.title}, but {'; '.join(faults)}")
    try:
        config = models.parse(layout.config(tensors))
        sizes = dimension(tensors, layout.first, -1), dimension(tensors, layout.last, 0)
        with torch.random.fork_rng(devices=[]):
            model = models.build(config, *sizes)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: has tensors of {layout.title}, but {error}") from None
    load_tensors(model, {names[key]: _as_ours(value, key) for key, value in tensors.items()}, path)
    return Imported(layout.title, model.eval())


def import_weights(
    path: Path, out_dir: Path, classes: Sequence[str] | None = None, overwrite: bool = False
) -> Imported:
    """Bring a published checkpoint into the project's own format: ``out_dir/model.safetensors``.

    Args:
        path: the published checkpoint.
        out_dir: folder to write; a repeated import of the same file changes nothing.
        classes: one name per output; numbers if not given.
        overwrite: replace a model that came from another file.

    Raises:
        CheckpointError: see :func:`import_checkpoint`, or another number of class names than outputs.
        ArtefactError: the folder holds a model of another origin.
    """
    found = import_checkpoint(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    target = out_dir / MODEL_FILE
    if target.exists() and not overwrite and read_metadata(target).get("source_sha256") != digest:
        raise ArtefactError(f"{target}: holds another model; choose another folder or add --overwrite")
    names = list(classes) if classes else [str(index) for index in range(found.model.n_classes)]
    extra = {"source": found.title, "source_file": path.name, "source_sha256": digest}
    save_model(target, found.model, names, extra)
    artefacts.write_json(out_dir / "model.json", read_metadata(target))
    return found


def _model_in(folder: Path, fold: int | None) -> Path:
    if fold is None and (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    found = {path.parent.name: path for path in sorted(folder.glob(f"fold_*/{MODEL_FILE}"))}
    if not found:
        raise CheckpointError(f"{folder}: neither {MODEL_FILE} nor fold_*/{MODEL_FILE} in this folder")
    wanted = f"fold_{fold}" if fold is not None else next(iter(found))
    if fold is None and len(found) > 1:
        raise CheckpointError(
            f"{folder}: a run of several folds ({', '.join(found)}); say which: load_weights(path, fold=0)"
        )
    if wanted not in found:
        raise CheckpointError(f"{folder}: no fold {fold} (found: {', '.join(found)})")
    return found[wanted]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with warnings.catch_warnings():  # about pickle protocols and old containers: nothing a user can change
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, *_UNREADABLE) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable file of plain tensors ({reason})") from None
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: no named tensors in this file")
    strangers = sorted(str(key) for key, value in content.items() if not isinstance(value, torch.Tensor))
    if strangers:
        raise CheckpointError(f"{path}: expected named tensors alone, unexpected {', '.join(strangers)}")
    return dict(content)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the ``module`` that data-parallel training leaves in their names (old CLAM: inside)."""
    return {".".join(part for part in key.split(".") if part != _WRAPPER): value for key, value in tensors.items()}


def _nearest_faults(tensors: Mapping[str, Tensor]) -> str:
    layout: Layout = nearest(tensors)
    known = ", ".join(each.title for each in LAYOUTS)
    return f"compared with {layout.title}: {'; '.join(key_faults(layout.names(tensors), tensors))} (known: {known})"


def _as_ours(tensor: Tensor, key: str) -> Tensor:
    """The tensor in float32; the class token without its batch axis."""
    return tensor.float().reshape(1, -1) if key.endswith("cls_token") else tensor.float()
