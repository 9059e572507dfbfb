"""Which runtime and which arithmetic."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BeforeValidator

from mhim.errors import ConfigError

BACKENDS = ("auto", "torch", "openvino", "onnxruntime")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
_ALIASES = {"fp32": "float32", "bf16": "bfloat16"}
_EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx"}

Backend = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    BeforeValidator(lambda value: _ALIASES.get(value, value) if isinstance(value, str) else value),
]


class Choice(NamedTuple):
    """A runtime and its arithmetic, both decided."""

    backend: Literal["torch", "openvino", "onnxruntime"]
    precision: Literal["float32", "bfloat16", "int8"]


def choose(name: str, backend: Backend, precision: Precision, device: str) -> Choice:
    """Decide what was left open.

    With nothing asked for it is torch in float32, which is the same everywhere. OpenVINO without a precision is
    bfloat16. bfloat16 or int8 on a CPU without a backend is OpenVINO where it is installed.

    Args:
        name: the encoder, for messages.
        backend: as configured.
        precision: as configured.
        device: torch's name of the device.

    Raises:
        ConfigError: the backend is not installed, or cannot do the precision on the device.
    """
    on_cpu = torch.device(device).type == "cpu"
    runtime = backend
    if runtime == "auto":
        narrow = precision == "int8" or (precision == "bfloat16" and _is_there("openvino"))
        runtime = "openvino" if narrow and on_cpu else "torch"
    if runtime != "torch" and not _is_there(runtime):
        raise ConfigError(
            f"{name}: {precision if backend == 'auto' else 'backend'} needs {runtime}, which is not installed; "
            f"pip install 'mhim[{_EXTRAS[runtime]}]', or use --backend torch"
        )
    if runtime != "torch" and not on_cpu:
        raise ConfigError(f"{name}: backend {runtime} runs on the CPU here; use --device cpu, or --backend torch")
    if precision == "auto":
        return Choice(runtime, "bfloat16" if runtime == "openvino" and _has_bfloat16() else "float32")
    if precision == "int8" and runtime != "openvino":
        raise ConfigError(f"{name}: int8 needs --backend openvino on a CPU; {runtime} runs float32 or bfloat16")
    if precision != "float32" and runtime == "onnxruntime":
        raise ConfigError(f"{name}: backend onnxruntime runs float32 here; bfloat16 and int8 need --backend openvino")
    if precision == "bfloat16" and runtime == "openvino" and not _has_bfloat16():
        raise ConfigError(f"{name}: this processor has no bfloat16 instructions for openvino; use --precision fp32")
    if precision == "int8" and not _is_there("nncf"):
        raise ConfigError(f"{name}: int8 needs nncf, which is not installed; pip install 'mhim[openvino]'")
    return Choice(runtime, precision)


def _has_bfloat16() -> bool:
    from mhim.encoders.backends.openvino_backend import has_bfloat16

    return has_bfloat16()


def _is_there(package: str) -> bool:
    return find_spec(package) is not None
