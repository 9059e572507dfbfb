"""Tissue on a bright-field slide: a coarse mask, and how much of any box it covers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mhim.errors import ConfigError
from mhim.slides import Slide
from mhim.tissue.clam import clam_preset, segment_clam
from mhim.tissue.external import mask_file, read_image, read_mask
from mhim.tissue.focus import blurred_cells
from mhim.tissue.raster import TissueMask, coverage, lattice_coverage, stored_downsamples
from mhim.tissue.regions import Outline, place_in_ring
from mhim.tissue.stain import TissueConfig, refuse_dark, segment_stain

__all__ = [
    "Outline",
    "TissueConfig",
    "TissueMask",
    "check_method",
    "clam_preset",
    "coverage",
    "lattice_coverage",
    "mask_file",
    "place_in_ring",
    "read_image",
    "read_mask",
    "segment_clam",
    "segment_tissue",
    "stored_downsamples",
]

CLAM = "clam:"


def check_method(method: str) -> None:
    """Refuse an unknown method before any slide is read.

    Raises:
        ConfigError: neither "stain" nor "clam:" with a known preset.
    """
    if method.startswith(CLAM):
        clam_preset(method.removeprefix(CLAM))
    elif method != "stain":
        raise ConfigError(f"unknown tissue method '{method}' (known: stain, clam:NAME such as clam:bwh_biopsy)")


def segment_tissue(slide: Slide, config: TissueConfig | None = None, outline: Path | None = None) -> TissueMask:
    """The tissue of a slide by the method of ``config``, or as a file gives it.

    Args:
        slide: any slide.
        config: how tissue is found; only ``reject_blur`` counts beside ``outline``.
        outline: file of polygons or image that overrides the method, see ``read_mask``.

    Raises:
        SlideError: the slide cannot be read or is fluorescence, or the file does not fit it.
        ConfigError: unknown method.
    """
    config = config or TissueConfig()
    check_method(config.method)
    if outline is not None:
        mask = read_mask(outline, slide.size_px0, slide.mpp0)
    elif config.method.startswith(CLAM):
        refuse_dark(slide.thumbnail(256), slide.slide_id)
        mask = segment_clam(slide, clam_preset(config.method.removeprefix(CLAM)), config.method)
    else:
        return segment_stain(slide, config)
    if not config.reject_blur:
        return mask
    blurred = blurred_cells(slide, mask.cells, mask.um_per_cell, config.blur_mpp, config.min_sharpness)
    return replace(mask, cells=mask.cells & ~blurred, rejected=blurred, outlines=None)
