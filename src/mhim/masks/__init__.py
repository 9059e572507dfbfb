"""Mask strategies: which instances the student does not see.

A strategy is one file: a class that derives from :class:`MaskStrategy`, carries a nested ``Config``
and is registered by name.
"""

from __future__ import annotations

from mhim.masks.contract import MaskSelection, MaskStrategy, masks
from mhim.masks.salience import HAM, LHAM, LRHAM, RHAM

__all__ = ["HAM", "LHAM", "LRHAM", "RHAM", "MaskSelection", "MaskStrategy", "masks"]
