"""Aggregators: bag of instance features -> slide logits, under one contract.

An aggregator is one file: a class that derives from :class:`MILModel`, carries a nested ``Config``,
and is registered by name. The contract tests in ``tests/contracts`` run on every registered name.
"""

from __future__ import annotations

from mhim.models.abmil import ABMIL
from mhim.models.clam import CLAMMB, CLAMSB
from mhim.models.contract import MILModel, MILOutput, count_parameters, models
from mhim.models.dsmil import DSMIL
from mhim.models.dtfd import DTFD
from mhim.models.pooling import MaxPooling, MeanPooling
from mhim.models.transmil import TransMIL

__all__ = [
    "ABMIL",
    "CLAMMB",
    "CLAMSB",
    "DSMIL",
    "DTFD",
    "MILModel",
    "MILOutput",
    "MaxPooling",
    "MeanPooling",
    "TransMIL",
    "count_parameters",
    "models",
]
