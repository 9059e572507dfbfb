"""What a number was made with: versions, code, processor; enough to say later what has changed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mhim

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "h5py", "pydantic", "safetensors")
SOURCE = Path(mhim.__file__).parent
LEARNING = ("masks", "methods", "metrics.py", "models", "training")
"""What a run's numbers are computed by; another report or another reader of slides changes none of them."""


def environment(device: str, *components: type) -> dict[str, Any]:
    """Versions and machine as plain JSON values; no paths, no times, no host name.

    Args:
        device: what the numbers were computed on, as torch calls it.
        components: classes that took part; the user's own files among them are recorded by digest.
    """
    return {
        "mhim": mhim.__version__,
        "code": code_digest(),
        "plugins": {path.name: digest_of([path]) for path in map(_own_file, components) if path is not None},
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def code_digest() -> str:
    """16 hexadecimal digits that identify the source files that train and score."""
    parts = [SOURCE / name for name in LEARNING]
    return digest_of([file for part in parts for file in ([part] if part.is_file() else sorted(part.rglob("*.py")))])


def digest_of(files: list[Path]) -> str:
    """16 hexadecimal digits of the names and contents of some files, in their order."""
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(SOURCE).as_posix() if path.is_relative_to(SOURCE) else path.name
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def _own_file(component: type) -> Path | None:
    """The file that defines a component outside this package."""
    path = Path(inspect.getfile(component))
    return None if path.is_relative_to(SOURCE) else path


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device_name(device: str) -> str:
    """``cpu``, or the name of the accelerator."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    return device
