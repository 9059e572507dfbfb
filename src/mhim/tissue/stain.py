"""The default tissue segmentation: stain against glass, without ink, at about 16 um per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mhim.config import Settings
from mhim.errors import SlideError
from mhim.slides import Slide
from mhim.tissue.focus import blurred_cells
from mhim.tissue.ink import find_ink
from mhim.tissue.planes import Plane, Planes, disc, histogram, odd
from mhim.tissue.raster import TissueMask, raster_size, stored_downsamples
from mhim.tissue.regions import whole_pieces

DARK_LEVEL = 60
BRIGHT_LEVEL = 180
FAINT_LEVEL = 5
GLASS_LEVEL = 200
COARSEST_UM, FINEST_UM = 16.0, 4.0
CELLS_WANTED, CELLS_ENOUGH = 1024, 512
SAMPLE_SIDE = 256
STRIP_ROWS = 64


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
    planes = _picture(slide, um_per_cell, config.smooth_um)
    ink = find_ink(planes, um_per_cell) if config.reject_ink else None
    clear = None if ink is None else 1 - ink
    stained, evidence = _evidence(planes, clear, config)
    del planes  # its memory serves what follows
    cells = _pieces(stained, evidence, clear, um_per_cell, config)
    rejected = np.zeros_like(cells) if ink is None else ink.view(np.bool_)
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
    _refuse_dark(_sample([rgb[..., index] for index in range(3)]), name)


def _refuse_dark(planes: Planes, name: str) -> None:
    dark = np.count_nonzero(planes.brightest < DARK_LEVEL) / planes.chroma.size
    if dark > 0.5 and np.count_nonzero(planes.darkest >= BRIGHT_LEVEL) < 0.01 * planes.chroma.size:
        raise SlideError(f"{name}: dark background, looks like fluorescence; only bright-field slides can be tiled")


def _picture(slide: Slide, um_per_cell: float, smooth_um: float) -> Planes:
    """The smoothed planes of a slide, one cell a pixel, with white glass.

    Raises:
        SlideError: the background is dark, or the slide cannot be read.
    """
    channels = _smooth(slide.read((0, 0), raster_size(slide, um_per_cell), um_per_cell), um_per_cell, smooth_um)
    sample = _sample(channels)
    _refuse_dark(sample, slide.slide_id)
    return _balanced(channels, glass_colour(sample))


def _evidence(planes: Planes, clear: Plane | None, config: TissueConfig) -> tuple[Plane, Plane]:
    """Stained cells, and these with the pale ones, each (h, w) uint8 of 0 and 1.

    Works in the memory of the planes, which are lost: to fault in fresh memory costs more than the arithmetic.

    Args:
        planes: a smoothed, white-balanced picture.
        clear: (h, w) uint8, 1 where there is no ink; None where there is none at all.
        config: how tissue is found.
    """
    import cv2

    threshold = config.threshold
    if threshold is None:
        threshold = float(np.clip(_otsu(planes.chroma, clear), *config.threshold_range))
    stained = planes.chroma
    cv2.threshold(stained, threshold, 1, cv2.THRESH_BINARY, dst=stained)
    if clear is not None:
        stained &= clear
    if not config.faint:
        return stained, stained
    pale = _pale_pink(planes, threshold)
    if clear is not None:
        pale &= clear
    _drop_rim(pale, stained, planes.green, planes.blue)
    return stained, np.bitwise_or(pale, stained, out=pale)


def _pieces(
    stained: Plane, evidence: Plane, clear: Plane | None, um_per_cell: float, config: TissueConfig
) -> NDArray[np.bool_]:
    """Tissue from what speaks for it: gaps closed, specks and small holes gone, nothing under ink."""
    import cv2

    kernel = disc(config.close_um, um_per_cell)
    side = len(kernel)  # what lies outside the picture is background: gaps at its edge stay open
    inner, cell_um2 = (slice(side, -side), slice(side, -side)), um_per_cell**2

    def padded(plane: Plane) -> Plane:
        return np.asarray(cv2.copyMakeBorder(plane, side, side, side, side, cv2.BORDER_CONSTANT, value=[0]))

    closed = np.asarray(cv2.morphologyEx(padded(evidence), cv2.MORPH_CLOSE, kernel), dtype=np.uint8)
    if clear is not None:
        closed[inner] &= clear
    least, hole = config.min_tissue_um2 / cell_um2, config.min_hole_um2 / cell_um2
    tissue = whole_pieces(closed, padded(stained), least, 0.05, hole)[inner]
    return (np.ascontiguousarray(tissue) if clear is None else tissue & clear).view(np.bool_)


def _otsu(plane: NDArray[Any], inside: NDArray[Any] | None) -> float:
    """Otsu's threshold (1979) of a plane (h, w) uint8, where ``inside`` is 1: largest variance between classes."""
    counts = histogram(plane, inside).astype(np.float64)
    below = np.cumsum(counts)
    total, mass = below[-1], np.cumsum(counts * np.arange(256))
    parts = below * (total - below)
    gap = mass[-1] * below - mass * total
    return float(np.argmax(np.divide(gap * gap, parts, out=np.zeros(256), where=parts > 0)))


def _sample(channels: Sequence[Plane]) -> Planes:
    """Every n-th cell of a large picture, enough to know its colours."""
    import cv2

    rows, columns = channels[0].shape
    step = -(-max(rows, columns) // SAMPLE_SIDE)
    size = (-(-columns // step), -(-rows // step))
    return Planes.of(np.asarray(cv2.resize(each, size, interpolation=cv2.INTER_NEAREST)) for each in channels)


def _smooth(rgb: NDArray[np.uint8], um_per_cell: float, smooth_um: float) -> list[Plane]:
    """Red, green and blue after a median filter, done strip by strip while a strip is in the cache."""
    import cv2

    side = min(odd(smooth_um / um_per_cell), 31)
    channels = [np.empty(rgb.shape[:2], np.uint8) for _ in range(3)]
    for top in range(0, len(rgb), STRIP_ROWS):
        begin, end = max(0, top - side // 2), top + STRIP_ROWS + side // 2
        strip = cv2.medianBlur(rgb[begin:end], side) if side > 1 else rgb[begin:end]
        inner = strip[top - begin :][:STRIP_ROWS]
        cv2.split(inner, [channel[top : top + STRIP_ROWS] for channel in channels])
    return channels


def _balanced(channels: Sequence[Plane], white: NDArray[Any]) -> Planes:
    """The planes of channels that are scaled in place so that ``white`` (3,) becomes 255."""
    import cv2

    for channel, level in zip(channels, white.tolist(), strict=True):
        cv2.convertScaleAbs(channel, dst=channel, alpha=255 / level, beta=-0.499)
    return Planes.of(channels)


def _pale_pink(planes: Planes, threshold: float) -> NDArray[Any]:
    """Cells whose green is a little darker than red and blue, beyond what the glass shows; takes the red plane."""
    import cv2

    pink, glass = planes.red, planes.darkest
    cv2.addWeighted(planes.red, 0.5, planes.blue, 0.5, 0, dst=pink)
    cv2.subtract(pink, planes.green, dst=pink)
    cv2.threshold(glass, GLASS_LEVEL - 1, 1, cv2.THRESH_BINARY, dst=glass)
    usual = int(np.argmax(histogram(pink, glass)[:10]))
    cv2.threshold(pink, min(max(usual + 4, FAINT_LEVEL), threshold), 1, cv2.THRESH_BINARY, dst=pink)
    return pink


def _drop_rim(pale: Plane, stained: Plane, far: Plane, near: Plane) -> None:
    """Take from pale cells a rim two cells wide: there colour bleeds, or the cell is only partly tissue.

    ``far`` and ``near`` are memory to work in.
    """
    import cv2

    block = np.ones((5, 5), np.uint8)
    cv2.dilate(stained, block, dst=far)
    np.greater(pale, far, out=far.view(np.bool_))
    pale &= np.asarray(cv2.dilate(far, block, dst=near), dtype=np.uint8)


def glass_colour(planes: Planes) -> NDArray[Any]:
    """(3,) colour of the glass: median of the brightest 5 % of cells, but not of pure white padding.

    Where these are pink there is no glass, and white is neutral at their brightest channel.
    """
    darkest = planes.darkest
    counts = histogram(darkest)
    total = counts.sum()
    if counts[BRIGHT_LEVEL:254].sum() >= 0.05 * total:
        counts[254:] = 0
    from_top = np.cumsum(counts[::-1])[::-1]
    least = max(int(np.count_nonzero(from_top >= 0.05 * total)) - 1, BRIGHT_LEVEL)
    most = int(np.flatnonzero(counts)[-1]) if counts.any() else 255
    bright = ((darkest >= least) & (darkest <= most)).view(np.uint8)
    if not bright.any():
        return np.full(3, 255.0)
    white = np.array([_median(histogram(plane, bright)) for plane in (planes.red, planes.green, planes.blue)])
    return np.full(3, white.max()) if (white[0] + white[2]) / 2 - white[1] > 8 else white


def _median(counts: NDArray[np.int64]) -> float:
    """Median of whole numbers that occur so often."""
    below, total = np.cumsum(counts), int(counts.sum())
    middle = np.searchsorted(below, [(total - 1) // 2 + 1, total // 2 + 1])
    return float(middle.mean())
