"""The default tissue segmentation: stain against glass, without ink, at about 16 um per cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import SlideError
from mhim.slides import Slide
from mhim.tissue.focus import blurred_cells
from mhim.tissue.ink import Planes, disc, find_ink, odd
from mhim.tissue.raster import TissueMask, raster_size, stored_downsamples
from mhim.tissue.regions import whole_pieces

DARK_LEVEL = 60
BRIGHT_LEVEL = 180
FAINT_LEVEL = 5
COARSEST_UM, FINEST_UM = 16.0, 4.0
CELLS_WANTED, CELLS_ENOUGH = 1024, 512
SAMPLE_SIDE = 384


class TissueConfig(Settings):
    """How tissue is found; lengths in micrometres, so that they hold at any scale."""

    method: str = Field(
        default="stain",
        description="'stain', or 'clam:NAME' for a preset of CLAM (clam:bwh_biopsy, clam:tcga, clam:FILE.csv)",
    )
    mpp: float | None = Field(
        default=None,
        gt=0,
        description="scale of the mask, um per cell; by default 4 to 16 by the size and levels of the slide",
    )
    max_side_px: int = Field(
        default=4096, ge=64, description="longest side of the mask; very large slides use coarser cells"
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=255,
        description="least colour (max - min of white-balanced RGB); by default found by Otsu",
    )
    threshold_range: tuple[float, float] = Field(
        default=(10.0, 28.0),
        description="bounds of the threshold that Otsu finds, so that neither noise nor ink moves it",
    )
    faint: bool = Field(
        default=True, description="also take pale pink (fat, faint stain) that is connected to stained tissue"
    )
    reject_ink: bool = Field(default=True, description="leave out pen ink, black borders and cover-slip edges")
    reject_blur: bool = Field(default=False, description="leave out tissue that is out of focus")
    blur_mpp: float = Field(default=2.0, gt=0, description="scale at which focus is judged")
    min_sharpness: float = Field(
        default=0.28, ge=0, le=1, description="least share of fine detail in the contrast of sharp tissue"
    )
    smooth_um: float = Field(default=40.0, ge=0, description="side of the median filter")
    close_um: float = Field(default=64.0, ge=0, description="gaps up to this width are closed")
    min_tissue_um2: float = Field(default=16_000.0, ge=0, description="smaller specks are dropped")
    min_hole_um2: float = Field(default=16_000.0, ge=0, description="smaller holes are filled")


def cell_size_um(slide: Slide, config: TissueConfig) -> float:
    """Side of a cell of the mask in micrometres.

    By default about a thousand cells along the slide within 4 to 16 um, moved to the coarsest scale in
    reach that a stored level has, whole or at a half, quarter or eighth: it is read without resampling.
    """
    length_um = slide.mpp0 * max(slide.size_px0)
    coarsest = max(slide.mpp0, length_um / config.max_side_px)
    if config.mpp is not None:
        return max(config.mpp, coarsest)
    wanted = max(coarsest, min(max(length_um / CELLS_WANTED, FINEST_UM), COARSEST_UM))
    downsamples = stored_downsamples(slide)
    stored = [slide.mpp0 * downsample * part for downsample in downsamples for part in (1, 2, 4, 8)]
    if len(downsamples) == 1:
        return wanted
    reach = [um for um in stored if wanted <= um <= COARSEST_UM * 1.05 and length_um / um >= CELLS_ENOUGH]
    return max(reach, default=wanted)


def segment_stain(slide: Slide, config: TissueConfig | None = None) -> TissueMask:
    """The tissue of a bright-field slide.

    The picture is white-balanced by its own glass. Ink, black borders and cover-slip edges go first (see
    ``mhim.tissue.ink``). Colour (largest minus smallest channel) is thresholded by Otsu within bounds;
    pale pink that hangs together with it (fat, faint stroma) joins; then gaps are closed, specks go and
    small holes are filled.

    Raises:
        SlideError: the background is dark (fluorescence), or the slide cannot be read.
    """
    config = config or TissueConfig()
    um_per_cell = cell_size_um(slide, config)
    rgb = slide.read((0, 0), raster_size(slide, um_per_cell), um_per_cell)
    refuse_dark(rgb, slide.slide_id)
    cells, rejected = _tissue_cells(rgb, um_per_cell, config)
    if config.reject_blur:
        blurred = blurred_cells(slide, cells, um_per_cell, config.blur_mpp, config.min_sharpness)
        cells, rejected = cells & ~blurred, rejected | blurred
    px0_per_cell = um_per_cell / slide.mpp0
    return TissueMask(cells, (px0_per_cell, px0_per_cell), um_per_cell, rejected=rejected)


def refuse_dark(rgb: NDArray[np.uint8], name: str) -> None:
    """Refuse a picture that is mostly black with almost nothing near white: no bright-field illumination.

    Raises:
        SlideError: it is such a picture.
    """
    planes = Planes.of(_sample(rgb))
    dark = float((planes.brightest < DARK_LEVEL).mean())
    if dark > 0.5 and float((planes.darkest >= BRIGHT_LEVEL).mean()) < 0.01:
        raise SlideError(f"{name}: dark background, looks like fluorescence; only bright-field slides can be tiled")


def _tissue_cells(
    rgb: NDArray[np.uint8], um_per_cell: float, config: TissueConfig
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tissue, and what was left out as ink."""
    import cv2

    planes = Planes.of(balanced(_smooth(rgb, um_per_cell, config.smooth_um)))
    ink = find_ink(planes, um_per_cell) if config.reject_ink else np.zeros_like(planes.chroma)
    clear = 1 - ink
    threshold = config.threshold
    if threshold is None:
        threshold = float(np.clip(_otsu(planes.chroma, clear), *config.threshold_range))
    stained = (planes.chroma > threshold).view(np.uint8) & clear
    evidence = stained | _without_rim(_pale_pink(planes, threshold) & clear, stained) if config.faint else stained
    kernel = disc(config.close_um, um_per_cell)
    side = len(kernel)  # what lies outside the picture is background: gaps at its edge stay open
    padded = cv2.copyMakeBorder(evidence, side, side, side, side, cv2.BORDER_CONSTANT, value=[0])
    closed = np.asarray(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel), dtype=np.uint8)
    inner = (slice(side, -side), slice(side, -side))
    closed[inner] &= clear
    seeds = np.asarray(cv2.copyMakeBorder(stained, side, side, side, side, cv2.BORDER_CONSTANT, value=[0]))
    cell_um2 = um_per_cell**2
    tissue = whole_pieces(closed, seeds, config.min_tissue_um2 / cell_um2, 0.05, config.min_hole_um2 / cell_um2)
    return (tissue[inner] & clear).view(np.bool_), ink.view(np.bool_)


def _otsu(plane: NDArray[Any], inside: NDArray[Any]) -> float:
    """Otsu's threshold of a plane (h, w) uint8 where ``inside`` is 1 (Otsu 1979): largest variance between classes."""
    import cv2

    counts = np.asarray(cv2.calcHist([plane], [0], inside, [256], [0, 256]), dtype=np.float64).ravel()
    below = np.cumsum(counts)
    total, mass = below[-1], np.cumsum(counts * np.arange(256))
    parts = below * (total - below)
    gap = mass[-1] * below - mass * total
    return float(np.argmax(np.divide(gap * gap, parts, out=np.zeros(256), where=parts > 0)))


def _sample(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th cell of a large picture, enough to know its colours."""
    step = max(1, max(rgb.shape) // SAMPLE_SIDE)
    return np.ascontiguousarray(rgb[::step, ::step])


def _smooth(rgb: NDArray[np.uint8], um_per_cell: float, smooth_um: float) -> NDArray[np.uint8]:
    import cv2

    side = min(odd(smooth_um / um_per_cell), 31)
    return np.asarray(cv2.medianBlur(rgb, side), dtype=np.uint8) if side > 1 else rgb


def _pale_pink(planes: Planes, threshold: float) -> NDArray[Any]:
    """Cells whose green is a little darker than red and blue, beyond what the glass itself shows."""
    import cv2

    pink = np.asarray(cv2.subtract(cv2.addWeighted(planes.red, 0.5, planes.blue, 0.5, 0), planes.green))
    glass = np.asarray(cv2.compare(planes.darkest, np.full(1, 200, np.uint8), cv2.CMP_GE))
    usual = int(np.argmax(cv2.calcHist([pink], [0], glass, [256], [0, 256])[:10]))
    return (pink > min(max(usual + 4, FAINT_LEVEL), threshold)).view(np.uint8)


def _without_rim(pale: NDArray[Any], stained: NDArray[Any]) -> NDArray[Any]:
    """Pale cells, but not a rim two cells wide: there colour bleeds, or the cell is only partly tissue."""
    import cv2

    block = np.ones((5, 5), np.uint8)
    far = pale & (1 - np.asarray(cv2.dilate(stained, block), dtype=np.uint8))
    return pale & np.asarray(cv2.dilate(far, block), dtype=np.uint8)


def balanced(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its glass scaled to white, (h, w, 3) uint8."""
    import cv2

    white = glass_colour(rgb)
    table = np.minimum(np.arange(256)[:, None] * (255.0 / white), 255.0).astype(np.uint8)
    return np.asarray(cv2.LUT(rgb, table[None]), dtype=np.uint8)


def glass_colour(rgb: NDArray[np.uint8]) -> NDArray[Any]:
    """(3,) colour of the glass: median of the brightest 5 % of cells, but not of pure white padding.

    Where these are pink there is no glass, and white is neutral at their brightest channel.
    """
    rgb = _sample(rgb)
    darkest = Planes.of(rgb).darkest
    counts = np.bincount(darkest.ravel(), minlength=256)
    if counts[BRIGHT_LEVEL:254].sum() >= 0.05 * darkest.size:
        counts[254:] = 0
    from_top = np.cumsum(counts[::-1])[::-1]
    least = max(int(np.count_nonzero(from_top >= 0.05 * darkest.size)) - 1, BRIGHT_LEVEL)
    most = int(np.flatnonzero(counts)[-1]) if counts.any() else 255
    bright = rgb[(darkest >= least) & (darkest <= most)]
    if not len(bright):
        return np.full(3, 255.0)
    white = np.median(bright, axis=0)
    return np.full(3, white.max()) if (white[0] + white[2]) / 2 - white[1] > 8 else white
