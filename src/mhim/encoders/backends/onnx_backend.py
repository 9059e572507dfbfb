"""ONNX Runtime on the CPU, float32: our own graphs exported, and files that users bring."""

from __future__ import annotations

import threading
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mhim.encoders.backends.cache import cached
from mhim.encoders.backends.graph import Graph

_FILE = "graph.onnx"
_OPSET = 18


class OnnxRunner:
    """A graph in ONNX Runtime, exported once per tile size; any batch size."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.version = f"onnxruntime {import_module('onnxruntime').__version__}"
        self._sessions: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 -> (B, D) float32."""
        side = tiles.shape[1], tiles.shape[2]
        with self._lock:
            if side not in self._sessions:
                self._sessions[side] = open_session(self._exported(*side) / _FILE)
        return run_session(self._sessions[side], tiles)

    def _exported(self, height_px: int, width_px: int) -> Path:
        def make(folder: Path) -> None:
            example = torch.zeros(2, height_px, width_px, 3, dtype=torch.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing warns of sizes, which are fixed here
                torch.onnx.export(
                    self.graph.module,
                    (example,),
                    str(folder / _FILE),
                    input_names=["tiles"],
                    output_names=["features"],
                    dynamic_axes={"tiles": {0: "batch"}, "features": {0: "batch"}},
                    opset_version=_OPSET,
                    dynamo=False,
                )

        return cached("onnx", [self.graph.identity, height_px, width_px, torch.__version__, _OPSET], make)


def open_session(path: Path) -> Any:
    """A session on the CPU with as many threads as torch has."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
    """The first output for one batch."""
    return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0], dtype=np.float32)
