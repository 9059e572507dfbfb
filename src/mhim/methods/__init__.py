"""Training methods: plain supervision, and MHIM around any aggregator."""

from __future__ import annotations

from mhim.methods.contract import Method, Step, StepResult, methods
from mhim.methods.mhim import MHIM
from mhim.methods.supervised import Supervised

__all__ = ["MHIM", "Method", "Step", "StepResult", "Supervised", "methods"]
