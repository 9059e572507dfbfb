"""A graph on a runtime, and how far the runtime moves its features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import convert_conv2d_weight_memory_format

from mhim.encoders.backends.cache import cached, processor
from mhim.encoders.backends.choice import Choice
from mhim.encoders.backends.graph import Graph
from mhim.encoders.backends.probe import PROBES, centred_cosine, probe_tiles

Tiles = NDArray[np.uint8]
Features = NDArray[np.float32]


class Runner(Protocol):
    """Runs a graph; may be called from several threads at once."""

    version: str

    def __call__(self, tiles: Tiles) -> Features:
        """(B, h, w, 3) uint8 -> (B, D) float32."""
        ...


class TorchRunner:
    """torch, channels last; bfloat16 by autocast.

    Args:
        graph: what to run; its module is moved to the device.
        choice: torch and a precision.
        device: torch's name of it.
        compiled: let ``torch.compile`` make code for it (a minute or more, once per batch and tile size).
    """

    version = f"torch {torch.__version__}"

    def __init__(self, graph: Graph, choice: Choice, device: str = "cpu", compiled: bool = False) -> None:
        self.device, self.narrow = torch.device(device), choice.precision == "bfloat16"
        module = convert_conv2d_weight_memory_format(graph.module.to(self.device), torch.channels_last)
        self.module = torch.compile(module) if compiled else module

    @torch.inference_mode()
    def __call__(self, tiles: Tiles) -> Features:
        """(B, h, w, 3) uint8 -> (B, D) float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow):
            return self.module(torch.from_numpy(tiles).to(self.device)).float().cpu().numpy()


def make_runner(graph: Graph, choice: Choice, device: str = "cpu", compiled: bool = False) -> Runner:
    """The graph on its runtime.

    Raises:
        ConfigError: the runtime cannot run this graph.
        ArtefactError: the cache of converted graphs cannot be written.
    """
    if choice.backend == "openvino":
        from mhim.encoders.backends.openvino_backend import OpenVinoRunner

        return OpenVinoRunner(graph, choice)
    if choice.backend == "onnxruntime":
        from mhim.encoders.backends.onnx_backend import OnnxRunner

        return OnnxRunner(graph)
    return TorchRunner(graph, choice, device, compiled)


def deviation(graph: Graph, choice: Choice, runner: Runner, side_px: int, device: str = "cpu") -> str:
    """How far a runtime moves features from torch in float32 on the CPU, in words; measured once and cached.

    The centred cosine (:func:`centred_cosine`) of ``PROBES`` made-up tissue tiles, for int8 of
    the last calibration tiles, which are not calibrated on. "none" for the reference itself.
    """
    if choice == ("torch", "float32") and torch.device(device).type == "cpu":
        return "none"
    from mhim.encoders.network import fit_tiles

    given = graph.calibration if choice.precision == "int8" else None
    calibration = None if given is None else _digest(given)
    where = processor() if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)
    key = [graph.identity, *choice, runner.version, side_px, calibration, where, PROBES]

    def measure(folder: Path) -> None:
        tiles = probe_tiles(PROBES, side_px, side_px, seed=1)
        if given is not None:
            tiles = fit_tiles(given[-PROBES:], side_px, "resize", "bicubic", "calibration")
        found = runner(tiles)
        on_cpu = torch.device(device).type == "cpu"  # else the module has moved, and a second one is built
        plain = graph if on_cpu else Graph(graph.identity, graph.build, graph.dim)
        reference = TorchRunner(plain, Choice("torch", "float32"))(tiles)
        cosine = centred_cosine(reference, found)
        text = json.dumps({"min": round(float(cosine.min()), 4), "mean": round(float(cosine.mean()), 4)})
        (folder / "deviation.json").write_text(text, encoding="utf-8")

    values = json.loads((cached("deviation", key, measure) / "deviation.json").read_text(encoding="utf-8"))
    kind = "made-up" if given is None else "of the calibration's"
    return f"centred cosine {values['min']:.4f} min, {values['mean']:.4f} mean, {PROBES} {kind} tiles"


def _digest(tiles: Tiles) -> str:
    return hashlib.sha256(tiles.tobytes()).hexdigest()[:16]
