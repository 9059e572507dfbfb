"""Maps on the tile lattice over the slide: attention, tile probability, contribution, and their scores."""

from __future__ import annotations

from mhim.maps.config import ALL_KINDS, KINDS, MapConfig, MapKind
from mhim.maps.draw import SlideMaps, draw_maps, slide_maps
from mhim.maps.lattice import Lattice
from mhim.maps.localise import localisation_table, summarise_localisation
from mhim.maps.scale import Scale
from mhim.maps.study import Study, telling

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "Lattice",
    "MapConfig",
    "MapKind",
    "Scale",
    "SlideMaps",
    "Study",
    "draw_maps",
    "localisation_table",
    "slide_maps",
    "summarise_localisation",
    "telling",
]
