"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM, tiled TIFF and more."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from mhim.cohort import slide_name
from mhim.errors import SlideError
from mhim.slides.base import SlideBase
from mhim.slides.resample import WHITE, Mode, Source, best_level, scale_between, source_side_px
from mhim.slides.scale import FileScale, resolve_scale

GENERIC_TIFF = "generic-tiff"


class OpenSlideSlide(SlideBase):
    """A slide file read by OpenSlide.

    The file is opened again once when a read fails, since an OpenSlide object stays broken after an
    error. Pickling keeps the path and opens the file again on the other side.

    Args:
        path: slide file, or a folder that holds the DICOM files of one slide.
        slide_id: its name; by default the file name without suffix.
        mpp0: micrometres per level-0 pixel, or None.
        mpp0_source: where ``mpp0`` comes from.
        force_scale: see ``mhim.slides.scale.resolve_scale``.

    Raises:
        SlideError: missing or unreadable file, no mpp anywhere, or pixels that are not square.
    """

    reader = "openslide"

    def __init__(
        self,
        path: Path,
        slide_id: str | None = None,
        mpp0: float | None = None,
        mpp0_source: str = "option",
        force_scale: bool = False,
    ) -> None:
        self.path = path
        self.slide_id = slide_id or slide_name(path)
        self.reader_version = openslide.__library_version__
        self._given = (path, slide_id, mpp0, mpp0_source, force_scale)
        self._file = open_file(path)
        self._reopening = threading.Lock()
        try:
            scale = resolve_scale(path, file_scale(self._file), mpp0, mpp0_source, force_scale)
        except SlideError:
            self.close()
            raise
        self.mpp0, self.mpp0_source = scale.mpp, scale.source
        self.notes = (scale.note,) if scale.note else ()
        self.size_px0: tuple[int, int] = self._file.dimensions
        self.downsamples: tuple[float, ...] = self._file.level_downsamples

    def source_scale(self, mpp: float, mode: Mode) -> float:
        """Pixels of the level that is read per pixel at ``mpp``."""
        return scale_between(self.mpp0 * self.downsamples[self._level(mpp)], mpp)

    def source(self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode) -> Source:
        """The pixels under a region, from the coarsest level that is fine enough; white outside the slide.

        Raises:
            SlideError: the region cannot be decoded, also after opening the file again.
        """
        scale = self.source_scale(mpp, mode)
        region_px = (source_side_px(size_px[0], scale), source_side_px(size_px[1], scale))
        return Source(on_white(self._read_level(xy_px0, self._level(mpp), region_px)), scale)

    def _level(self, mpp: float) -> int:
        return best_level([self.mpp0 * value for value in self.downsamples], mpp)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _read_level(self, xy_px0: tuple[int, int], level: int, region_px: tuple[int, int]) -> Image.Image:
        file = self._file
        try:
            return file.read_region(xy_px0, level, region_px)
        except openslide.OpenSlideError:
            pass
        try:
            return self._reopened(file).read_region(xy_px0, level, region_px)
        except openslide.OpenSlideError as error:
            place = f"x {xy_px0[0]}, y {xy_px0[1]} (level 0), {region_px[0]} x {region_px[1]} px of level {level}"
            raise SlideError(f"{self.path}: cannot read the region at {place}: {error}") from None

    def _reopened(self, broken: openslide.OpenSlide) -> openslide.OpenSlide:
        """The file opened again, once for all threads that met the broken handle (which others may still hold)."""
        with self._reopening:
            if self._file is broken:
                self._file = open_file(self.path)
            return self._file

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


def on_white(image: Image.Image) -> NDArray[np.uint8]:
    """An RGBA image composited on white, as RGB (h, w, 3) uint8."""
    if image.getchannel("A").getextrema() == (255, 255):
        return np.array(image.convert("RGB"))
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(image, mask=image.getchannel("A"))
    return np.array(canvas)


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() == ".dcm")


def is_dicom_slide(folder: Path) -> bool:
    """Whether a folder holds nothing but the DICOM files of one slide (one series)."""
    members = dicom_files(folder)
    if not members or len(members) != len(list(folder.iterdir())):
        return False
    first = _series(members[0])
    return first is not None and all(_series(member) == first for member in members[1:])


def _series(path: Path) -> str | None:
    try:
        with openslide.OpenSlide(path) as file:
            return file.properties.get("dicom.SeriesInstanceUID")
    except openslide.OpenSlideError:
        return None


def open_file(path: Path) -> openslide.OpenSlide:
    """The file, or the first of the DICOM files of a folder, opened by OpenSlide.

    Raises:
        SlideError: missing, or not readable by OpenSlide.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such slide file")
    members = dicom_files(path) if path.is_dir() else [path]
    if not members:
        raise SlideError(f"{path}: a folder without .dcm files; give a slide file or a DICOM folder")
    try:
        return openslide.OpenSlide(members[0])
    except openslide.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{path}: not a slide format that OpenSlide reads, or a truncated file") from None
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: cannot be opened: {error}") from None


def file_scale(file: openslide.OpenSlide) -> FileScale:
    """What a file says about its scale; OpenSlide's mpp of a generic TIFF comes from the resolution tags."""
    properties = file.properties
    mpp = _pair(properties, openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    power = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    if properties.get(openslide.PROPERTY_NAME_VENDOR) == GENERIC_TIFF:
        return FileScale(None, mpp, power)
    pixels_per_unit = _pair(properties, "tiff.XResolution", "tiff.YResolution")
    um_per_unit = {"inch": 25400.0, "centimeter": 10000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    resolution = None
    if pixels_per_unit is not None and um_per_unit is not None and min(pixels_per_unit) > 0:
        resolution = (um_per_unit / pixels_per_unit[0], um_per_unit / pixels_per_unit[1])
    return FileScale(mpp, resolution, power)


def _pair(properties: Mapping[str, str], x: str, y: str) -> tuple[float, float] | None:
    first, second = _number(properties.get(x)), _number(properties.get(y))
    return None if first is None or second is None else (first, second)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
