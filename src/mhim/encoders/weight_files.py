"""Weight files: where they are, their digest, and their tensors, read without running code.

A file is looked for, in this order: the path given; the environment variable that other tools use for it; the
hub client's cache on this machine; and, only when a download is asked for, the hub.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhim.errors import CheckpointError, ConfigError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_CONTAINERS = ("model", "state_dict", "teacher", "model_state_dict")
_UNREADABLE = (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError)


def find_weights(
    name: str,
    given: Path | None,
    hub: str = "",
    files: Sequence[str] = (),
    *,
    variable: str = "",
    gated: bool = False,
    download: bool = False,
    revision: str | None = None,
) -> Path:
    """The weight file of an encoder.

    Args:
        name: the encoder, for messages.
        given: a file, or a folder that holds one of ``files`` or a single weight file.
        hub: repository on the hub, "" for none.
        files: names of the file there, the preferred one first.
        variable: environment variable that may name a local file or folder.
        gated: whether the hub asks for consent.
        download: fetch it when it is not on this machine.
        revision: branch, tag or commit on the hub.

    Raises:
        ConfigError: not found; one line that says how to get it.
    """
    given = given or (Path(os.environ[variable]) if variable and os.environ.get(variable) else None)
    if given is not None:
        return _local(name, given, files)
    if not hub:
        raise ConfigError(f"{name}: its weights are not on the hub; give the file with --weights")
    return _from_hub(name, hub, files, gated, download, revision)


def _local(name: str, path: Path, files: Sequence[str]) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{name}: {path}: no such weight file")
    found = [path / file for file in files if (path / file).is_file()]
    found = found or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found or (len(found) > 1 and found[0].name not in files):
        raise ConfigError(f"{name}: {path}: {len(found) or 'no'} weight files here; give one file with --weights")
    return found[0]


def _from_hub(name: str, hub: str, files: Sequence[str], gated: bool, download: bool, revision: str | None) -> Path:
    if find_spec("huggingface_hub") is None:
        raise ConfigError(f"{name}: its weights are {hub} on the hub; pip install 'mhim[hub]', or give --weights FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    page = f"https://huggingface.co/{hub}"
    leave = f"ask for access at {page}, log in with 'hf auth login' or HF_TOKEN, then add --download"
    for file in files:
        try:
            return Path(hf_hub_download(hub, file, revision=revision, local_files_only=not download))
        except LocalEntryNotFoundError:
            continue  # another file name may be there; offline ends in the message below
        except GatedRepoError:
            raise ConfigError(f"{name}: {hub} is gated and this log-in has no access; {leave}") from None
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"{name}: {hub} cannot be fetched ({reason}); {leave}, or give --weights FILE") from None
    if download:
        raise ConfigError(f"{name}: no network, or {hub} has none of {', '.join(files)}; give --weights FILE")
    how = leave if gated else "add --download to fetch it"
    raise ConfigError(f"{name}: {hub} is not on this machine and nothing is fetched unasked; {how}, or --weights FILE")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, by name; no code in the file is run.

    Containers ("model", "state_dict", "teacher") and the prefixes of wrapped training modules are taken off.

    Raises:
        CheckpointError: the file cannot be read, or holds no tensors.
    """
    try:
        content = _read(path)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: not a readable weight file ({type(error).__name__}: {reason})") from None
    for container in _CONTAINERS:
        inner = content.get(container) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
    tensors = {
        str(key): value for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }  # fmt: skip
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; a state dict is needed")
    for prefix in ("module.", "backbone.", "_orig_mod."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
    return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(network: torch.nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Put tensors into a network, as float32.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; names some of them and ``source``.
    """
    own = network.state_dict()
    faults = [f"missing {key}" for key in own if key not in tensors]
    faults += [f"unexpected {key}" for key in tensors if key not in own]
    faults += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"{source}: does not fit: {'; '.join(faults[:4])}{more}")
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
