"""Runtimes for encoders: torch, OpenVINO, ONNX Runtime.

Each runs one graph, uint8 tiles in (B, h, w, 3) and float32 features out (B, D), the normalisation inside.
torch is always there; the other two are extras and are imported when they are used.
"""

from __future__ import annotations

from mhim.encoders.backends.choice import BACKENDS, PRECISIONS, Backend, Choice, Precision, choose
from mhim.encoders.backends.graph import Graph, TileGraph
from mhim.encoders.backends.runner import Runner, make_runner

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "Choice",
    "Graph",
    "Precision",
    "Runner",
    "TileGraph",
    "choose",
    "make_runner",
]
