"""Aggregators: bag of instance features -> slide logits, under one contract.

An aggregator is one file: a class that derives from :class:`MILModel`, carries a nested ``Config``,
and is registered by name. The contract tests in ``tests/contracts`` run on every registered name.
"""

from __future__ import annotations

from mhim.models.abmil import ABMIL
from mhim.models.contract import MILModel, MILOutput, models

__all__ = ["ABMIL", "MILModel", "MILOutput", "models"]
