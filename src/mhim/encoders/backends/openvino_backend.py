"""OpenVINO on the CPU: bfloat16 or float32, and int8 after calibration (NNCF's post-training quantisation)."""

from __future__ import annotations

import hashlib
import threading
import warnings
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mhim.encoders.backends.cache import cached
from mhim.encoders.backends.choice import Choice
from mhim.encoders.backends.graph import Graph
from mhim.encoders.backends.probe import PROBES

CALIBRATION_TILES = 64
_FILE = "graph.xml"


@lru_cache
def _core() -> Any:
    return import_module("openvino").Core()


def has_bfloat16() -> bool:
    """Whether this processor has instructions that OpenVINO uses for bfloat16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRunner:
    """A graph in OpenVINO, compiled once per tile size; any batch size.

    The converted (for int8: calibrated) graph is kept in the user's cache, by content. It runs on as many
    threads as torch would.
    """

    def __init__(self, graph: Graph, choice: Choice) -> None:
        self.graph, self.choice = graph, choice
        self.version = f"openvino {import_module('openvino').__version__}"
        self._compiled: dict[tuple[int, int], Any] = {}
        self._lock, self._requests = threading.Lock(), threading.local()

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) uint8 -> (B, D) float32."""
        side = tiles.shape[1], tiles.shape[2]
        requests = self._requests.__dict__.setdefault("by_side", {})
        if side not in requests:
            requests[side] = self.compiled(*side).create_infer_request()
        return np.array(requests[side].infer([np.ascontiguousarray(tiles)])[0], dtype=np.float32)

    def compiled(self, height_px: int, width_px: int) -> Any:
        """The compiled model for one tile size."""
        side = height_px, width_px
        with self._lock:
            if side not in self._compiled:
                model = _core().read_model(self._converted(*side) / _FILE)
                narrow = self.choice.precision != "float32" and has_bfloat16()
                hints = {
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "ENABLE_CPU_PINNING": False,
                }
                self._compiled[side] = _core().compile_model(model, "CPU", hints)
            return self._compiled[side]

    def _converted(self, height_px: int, width_px: int) -> Path:
        """Folder of the converted graph."""
        is_int8 = self.choice.precision == "int8"
        key: list[Any] = [self.graph.identity, height_px, width_px, self.version, torch.__version__]
        key += (
            [hashlib.sha256(np.ascontiguousarray(self._calibration(height_px, width_px)).tobytes()).hexdigest()]
            if is_int8
            else []
        )

        def make(folder: Path) -> None:
            model = self._convert(height_px, width_px)
            if is_int8:
                model = self._quantised(model, height_px, width_px)
            import_module("openvino").save_model(model, folder / _FILE, compress_to_fp16=False)

        return cached("openvino", key, make)

    def _convert(self, height_px: int, width_px: int) -> Any:
        example = torch.zeros(2, height_px, width_px, 3, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of sizes, which are fixed here
            model = import_module("openvino").convert_model(self.graph.module, example_input=example)
        model.reshape([-1, height_px, width_px, 3])
        return model

    def _calibration(self, height_px: int, width_px: int) -> NDArray[np.uint8]:
        """Tiles to calibrate on: those given, but the last, which the deviation is measured on."""
        from mhim.encoders.network import fit_tiles

        given = self.graph.calibration
        assert given is not None, "int8 without calibration tiles is refused before"
        return fit_tiles(given[:-PROBES][:CALIBRATION_TILES], height_px, "resize", "bicubic", "calibration")

    def _quantised(self, model: Any, height_px: int, width_px: int) -> Any:
        nncf = import_module("nncf")
        tiles = self._calibration(height_px, width_px)
        kind = nncf.ModelType.TRANSFORMER if self.graph.is_transformer else None
        batches = nncf.Dataset([tile[None] for tile in tiles])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nncf.quantize(model, batches, subset_size=len(tiles), model_type=kind)
