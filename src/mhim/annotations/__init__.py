"""Outlines that people drew on slides, in the files of several programs, and how much of each tile lies inside.

ASAP XML (CAMELYON16 and 17), GeoJSON as QuPath writes it, and JSON with ``positive`` and ``negative`` outlines; mask
images are read by the tiling itself.
"""

from __future__ import annotations

from mhim.annotations.outlines import Outlines, Region
from mhim.annotations.read import OUTLINE_SUFFIXES, read_outlines

__all__ = ["OUTLINE_SUFFIXES", "Outlines", "Region", "read_outlines"]
