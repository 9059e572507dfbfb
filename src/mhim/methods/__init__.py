"""Training methods: plain supervision, and MHIM around any aggregator."""

from __future__ import annotations

from mhim.methods.contract import Method, Mining, Step, StepResult, methods
from mhim.methods.mhim import MHIM
from mhim.methods.mhim_v2 import MHIMv2
from mhim.methods.objectives import CLASSIFICATION, Classification, DiscreteHazards
from mhim.methods.supervised import Supervised

__all__ = [
    "CLASSIFICATION",
    "MHIM",
    "Classification",
    "DiscreteHazards",
    "MHIMv2",
    "Method",
    "Mining",
    "Step",
    "StepResult",
    "Supervised",
    "methods",
]
