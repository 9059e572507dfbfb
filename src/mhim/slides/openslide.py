"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled TIFF and more."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from mhim.cohort import slide_name
from mhim.errors import SlideError
from mhim.slides.base import SlideBase
from mhim.slides.resample import WHITE, Mode, Source, best_level, source_side_px

MPP_TOLERANCE = 0.01


class OpenSlideSlide(SlideBase):
    """A slide file read by OpenSlide; the scale in its metadata wins over a given one.

    The file is opened again once when a read fails, since an OpenSlide object stays broken after an
    error. Pickling keeps the path and opens the file again on the other side.

    Args:
        path: slide file, or a folder that holds the DICOM files of one slide.
        slide_id: its name; by default the file name without suffix.
        mpp0: micrometres per level-0 pixel, used only when the file does not say.
        mpp0_source: what to record as the source of ``mpp0``.

    Raises:
        SlideError: missing or unreadable file, no mpp anywhere, or pixels that are not square.
    """

    reader = "openslide"

    def __init__(
        self, path: Path, slide_id: str | None = None, mpp0: float | None = None, mpp0_source: str = "option"
    ) -> None:
        self.path = path
        self.slide_id = slide_id or slide_name(path)
        self.reader_version = openslide.__library_version__
        self._given = (path, slide_id, mpp0, mpp0_source)
        self._file = _open(path)
        self._reopening = threading.Lock()
        found = _metadata_mpp(path, self._file)
        mpp = found or mpp0
        if mpp is None:
            self.close()
            raise SlideError(f"{path}: no mpp in its metadata; give --mpp or fill the column 'mpp' of the cohort")
        if not mpp > 0:
            self.close()
            raise SlideError(f"{path}: the given mpp is {mpp:g}, expected a positive number")
        self.mpp0 = float(mpp)
        self.mpp0_source = "metadata" if found else mpp0_source
        self.size_px0: tuple[int, int] = self._file.dimensions
        self.downsamples: tuple[float, ...] = self._file.level_downsamples

    def source_scale(self, mpp: float, mode: Mode) -> float:
        """Pixels of the level that is read per pixel at ``mpp``."""
        return mpp / (self.mpp0 * self.downsamples[self._level(mpp)])

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
                self._file = _open(self.path)
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


def _open(path: Path) -> openslide.OpenSlide:
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


def _metadata_mpp(path: Path, file: openslide.OpenSlide) -> float | None:
    texts = [file.properties.get(openslide.PROPERTY_NAME_MPP_X), file.properties.get(openslide.PROPERTY_NAME_MPP_Y)]
    values = [float(text) for text in texts if text is not None]
    if len(values) < 2 or not min(values) > 0:
        return None
    if max(values) > min(values) * (1 + MPP_TOLERANCE):
        raise SlideError(
            f"{path}: its pixels are not square (mpp x {values[0]:g}, y {values[1]:g}); resample the slide"
        )
    return sum(values) / 2
