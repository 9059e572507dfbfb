"""CLAM's tissue segmentation by the names of its presets, written from its published description.

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images",
Nature Biomedical Engineering 2021. The presets are the tables that come with CLAM and with MHIM-MIL.
Coordinates equal CLAM's patch for patch; see ``mhim.tiles.clam_tiles`` for the grid.
"""

from __future__ import annotations

import csv
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mhim.config import Settings, validate
from mhim.errors import ConfigError, SlideError
from mhim.slides import Slide
from mhim.tissue.raster import TissueMask
from mhim.tissue.regions import ClamRules, ContourTest, Outline, filled, rings, scaled

MAX_SEGMENTATION_PX = 100_000_000
SEGMENTATION_DOWNSAMPLE = 64
REFERENCE_SIDE_PX0 = 512


class ClamPreset(Settings):
    """Settings of CLAM's segmentation, under CLAM's own names."""

    seg_level: int = Field(
        default=-1, ge=-1, description="pyramid level; -1 takes the largest downsampling not above 64"
    )
    sthresh: int = Field(default=8, ge=0, le=255, description="tissue has a saturation above this")
    mthresh: int = Field(default=7, ge=1, description="side of the median filter, odd")
    close: int = Field(default=4, ge=0, description="side of the square that closes gaps, 0 for none")
    use_otsu: bool = Field(default=False, description="Otsu's threshold instead of sthresh")
    a_t: float = Field(default=100, ge=0, description="least area of tissue, in squares of 512 px at level 0")
    a_h: float = Field(default=16, ge=0, description="least area of a hole, in the same unit")
    max_n_holes: int = Field(default=8, ge=0, description="most holes of one piece of tissue")
    contour_fn: ContourTest = Field(default="four_pt", description="when a tile counts as inside a contour")
    use_padding: bool = Field(default=True, description="whether tiles may stick out of the slide")
    keep_ids: tuple[int, ...] = Field(default=(), description="numbers of the contours to keep; all by default")
    exclude_ids: tuple[int, ...] = Field(default=(), description="numbers of the contours to leave out")

    @field_validator("mthresh")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"a median filter has an odd side; use {value + 1}")
        return value


PRESETS: dict[str, ClamPreset] = {
    "default": ClamPreset(),
    "bwh_biopsy": ClamPreset(sthresh=15, mthresh=11, close=2, a_t=1, a_h=1, max_n_holes=2),
    "bwh_resection": ClamPreset(sthresh=15, mthresh=11, close=4, a_t=100, a_h=16, max_n_holes=8),
    "tcga": ClamPreset(sthresh=8, mthresh=7, close=4, a_t=16, a_h=4, max_n_holes=8),
    "tcga_nsclc": ClamPreset(sthresh=8, mthresh=7, close=4, a_t=100, a_h=16, max_n_holes=32),
}
"""``tcga_nsclc`` is MHIM-MIL's preset for lung; the others are CLAM's."""

ALIASES = {"camelyon": "bwh_biopsy", "camelyon16": "bwh_biopsy", "c16": "bwh_biopsy", "mhim_nsclc": "tcga_nsclc"}
_UNUSED = {"vis_level", "line_thickness", "white_thresh", "black_thresh"}


class Levels(Protocol):
    """The pyramid of a slide, finest level first."""

    @property
    def sizes_px(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level."""
        ...

    def read(self, level: int) -> NDArray[np.uint8]:
        """A whole level, (h, w, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def clam_preset(name: str) -> ClamPreset:
    """The preset of a name, or of a file in CLAM's CSV format (``.csv``).

    Raises:
        ConfigError: no such name or file, or a value that CLAM does not know.
    """
    if name.lower().endswith(".csv"):
        return _read_preset(Path(name))
    known = ALIASES.get(name, name)
    if known not in PRESETS:
        names = ", ".join(sorted([*PRESETS, *ALIASES]))
        raise ConfigError(f"unknown CLAM preset '{name}' (known: {names}, or a .csv file of CLAM)")
    return PRESETS[known]


def _read_preset(path: Path) -> ClamPreset:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, skipinitialspace=True))
    except OSError as error:
        raise ConfigError(f"{path}: CLAM preset cannot be read ({error.strerror})") from None
    if len(rows) != 1:
        raise ConfigError(f"{path}: a CLAM preset has one line of values below its header, found {len(rows)}")
    values: dict[str, Any] = {key: text for key, text in rows[0].items() if key and key not in _UNUSED}
    for key in ("keep_ids", "exclude_ids"):
        text = (values.get(key) or "none").strip()
        values[key] = () if text == "none" else tuple(text.replace(",", " ").split())
    return validate(ClamPreset, values, str(path))


@dataclass(frozen=True)
class _OpenSlideLevels:
    """Levels as OpenSlide gives them: what CLAM itself reads."""

    file: Any
    sizes_px: tuple[tuple[int, int], ...]

    def read(self, level: int) -> NDArray[np.uint8]:
        rgba = np.asarray(self.file.read_region((0, 0), level, self.sizes_px[level]))
        return np.ascontiguousarray(rgba[..., :3])

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class _OneLevel:
    """A slide without a pyramid file behind it."""

    slide: Slide
    sizes_px: tuple[tuple[int, int], ...]

    def read(self, level: int) -> NDArray[np.uint8]:
        return self.slide.read((0, 0), self.sizes_px[level], self.slide.mpp0)

    def close(self) -> None:
        """Nothing of its own to release."""


def levels_of(slide: Slide) -> Levels:
    """The pyramid of a slide: its file as OpenSlide sees it, else its pixels as one level."""
    path = getattr(slide, "path", None)
    if path is not None:
        import openslide

        members = sorted(Path(path).glob("*.dcm")) if Path(path).is_dir() else [path]
        try:
            file = openslide.OpenSlide(members[0])
        except (openslide.OpenSlideError, IndexError):
            file = None
        if file is not None:
            return _OpenSlideLevels(file, file.level_dimensions)
    return _OneLevel(slide, (slide.size_px0,))


def level_downsamples(levels: Levels) -> list[tuple[float, float]]:
    """(x, y) downsampling of each level, from the sizes."""
    width, height = levels.sizes_px[0]
    return [(width / w, height / h) for w, h in levels.sizes_px]


def segmentation_level(levels: Levels, preset: ClamPreset, name: str) -> int:
    """The level that is segmented.

    Raises:
        SlideError: the slide has no such level, or the level has more than 1e8 pixels.
    """
    level = preset.seg_level
    if level < 0:
        below = [i for i, (x, y) in enumerate(level_downsamples(levels)) if (x + y) / 2 <= SEGMENTATION_DOWNSAMPLE]
        level = max(below, default=0)
    if level >= len(levels.sizes_px):
        raise SlideError(f"{name}: no pyramid level {level} (it has {len(levels.sizes_px)}); use seg_level=-1")
    width, height = levels.sizes_px[level]
    if width * height > MAX_SEGMENTATION_PX:
        raise SlideError(
            f"{name}: CLAM skips slides whose segmentation level is so large ({width} x {height}); use --tissue stain"
        )
    return level


def segment_clam(slide: Slide, preset: ClamPreset, method: str = "clam") -> TissueMask:
    """Tissue as CLAM finds it, with CLAM's outlines.

    Args:
        slide: any slide; its pyramid is read by OpenSlide, as CLAM does.
        preset: CLAM's settings.
        method: what to record as the method.

    Raises:
        SlideError: see ``segmentation_level``; or the slide cannot be read.
    """
    with closing(levels_of(slide)) as levels:
        level = segmentation_level(levels, preset, slide.slide_id)
        per_cell = level_downsamples(levels)[level]
        found = clam_rings(levels.read(level), per_cell, preset)
    outlines = tuple(
        Outline(scaled(ring, per_cell), tuple(scaled(hole, per_cell) for hole in holes)) for ring, holes in found
    )
    width, height = levels.sizes_px[level]
    cells = filled([Outline(ring, tuple(holes)) for ring, holes in found], (height, width), (1.0, 1.0))
    um_per_cell = slide.mpp0 * math.sqrt(per_cell[0] * per_cell[1])
    rules = ClamRules(preset.contour_fn, preset.use_padding)
    return TissueMask(cells, per_cell, um_per_cell, method, outlines=outlines, clam_rules=rules)


def clam_rings(
    rgb: NDArray[np.uint8], downsample: tuple[float, float], preset: ClamPreset
) -> list[tuple[NDArray[np.int32], list[NDArray[np.int32]]]]:
    """Outer rings that CLAM keeps, each with the holes that it keeps, in pixels of ``rgb``.

    Args:
        rgb: (h, w, 3) uint8, a whole level.
        downsample: (x, y) level-0 pixels per pixel of ``rgb``.
        preset: CLAM's settings.
    """
    import cv2

    saturation = np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1])
    smooth = cv2.medianBlur(saturation, preset.mthresh)
    kind = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if preset.use_otsu else 0)
    _, binary = cv2.threshold(smooth, 0 if preset.use_otsu else preset.sthresh, 255, kind)
    if preset.close > 0:
        block = np.ones((preset.close, preset.close), np.uint8)
        binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, block)
    reference = int(REFERENCE_SIDE_PX0**2 / (downsample[0] * downsample[1]))
    kept: list[tuple[NDArray[np.int32], list[NDArray[np.int32]]]] = []
    for ring, holes in rings(np.asarray(binary)):
        areas = [cv2.contourArea(hole) for hole in holes]
        area = cv2.contourArea(ring) - sum(areas)
        if area == 0 or not area > preset.a_t * reference:
            continue
        largest = sorted(range(len(holes)), key=lambda index: -areas[index])[: preset.max_n_holes]
        kept.append((ring, [holes[index] for index in largest if areas[index] > preset.a_h * reference]))
    chosen = set(preset.keep_ids or range(len(kept))) - set(preset.exclude_ids)
    return [piece for index, piece in enumerate(kept) if index in chosen]
