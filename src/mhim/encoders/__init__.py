"""Frozen encoders: tile pixels -> features, under one contract.

An encoder is one file: a class that derives from :class:`Encoder`, carries a nested ``Config``, and is
registered by name. The contract tests in ``tests/encoders`` run on every registered name.
"""

from __future__ import annotations

from mhim.encoders.colour import ColourEncoder
from mhim.encoders.contract import Encoder, encoders
from mhim.encoders.efficientnet_lite import EfficientNetLite0, EfficientNetLite0Mid
from mhim.encoders.onnx_file import OnnxFileEncoder
from mhim.encoders.published import OwnViT, PublishedEncoder
from mhim.encoders.timm_models import TimmEncoder

__all__ = [
    "ColourEncoder",
    "EfficientNetLite0",
    "EfficientNetLite0Mid",
    "Encoder",
    "OnnxFileEncoder",
    "OwnViT",
    "PublishedEncoder",
    "TimmEncoder",
    "encoders",
]
