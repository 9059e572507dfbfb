"""Slides: one small interface that reads any region at any scale, so nobody else sees a pyramid."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mhim.errors import ConfigError, SlideError
from mhim.slides.resample import Mode

__all__ = ["READERS", "Mode", "Slide", "open_slide"]

READERS = ("auto", "openslide", "tiff", "image")


class Slide(Protocol):
    """A slide that can be read at any mpp.

    Attributes:
        slide_id: the slide's name.
        size_px0: (width, height) in level-0 pixels.
        mpp0: micrometres per level-0 pixel.
        mpp0_source: where ``mpp0`` came from: "metadata", "tiff_resolution", "objective_power", "cohort", "option".
        reader, reader_version: what decodes the pixels.
        notes: what a user should know about how this slide is read, a line each.
    """

    slide_id: str
    size_px0: tuple[int, int]
    mpp0: float
    mpp0_source: str
    reader: str
    reader_version: str
    notes: tuple[str, ...]

    def read(
        self, xy_px0: tuple[int, int], size_px: tuple[int, int], mpp: float, mode: Mode = "fast"
    ) -> NDArray[np.uint8]:
        """RGB region (h, w, 3) uint8 of ``size_px`` (w, h) at ``mpp`` whose corner is at ``xy_px0``.

        Outside the slide, and where it is transparent, the region is white. The default mode suits pictures and
        masks; a tile that is read alone is within 2 of 255 of the same tile of ``read_many`` in the same mode.

        Raises:
            SlideError: the region cannot be decoded.
        """
        ...

    def read_many(
        self, xy_px0: NDArray[np.integer], size_px: int, mpp: float, out: NDArray[np.uint8], mode: Mode = "parity"
    ) -> None:
        """Fill ``out`` with square tiles; several threads may call it at once on one slide.

        It is fastest when corners come sorted by y, then x, some dozens to hundreds in a call: a stored tile that
        several of them touch is then decoded once.

        Args:
            xy_px0: (n, 2) integer corners in level-0 pixels.
            size_px: side of a tile in pixels at ``mpp``.
            mpp: micrometres per pixel wanted.
            out: (n, size_px, size_px, 3) uint8, filled with RGB in the order of the corners.
            mode: see ``mhim.slides.resample.Mode``.

        Raises:
            SlideError: a tile cannot be decoded (its position is named), and what ``out`` then holds is undefined;
                or the arguments do not belong together.
        """
        ...

    def thumbnail(self, max_side_px: int) -> NDArray[np.uint8]:
        """The whole slide (h, w, 3) uint8, its longer side at most ``max_side_px``."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_slide(
    path: str | Path,
    slide_id: str | None = None,
    mpp0: float | None = None,
    mpp0_source: str = "option",
    reader: str = "auto",
    force_scale: bool = False,
) -> Slide:
    """The slide in a file.

    Args:
        path: any format that OpenSlide reads, a tiled TIFF, a folder that holds the DICOM files of one slide, or a
            plain picture.
        slide_id: its name; by default the file name without suffix.
        mpp0: micrometres per level-0 pixel, for a file that does not say; see ``mhim.slides.scale.resolve_scale``.
        mpp0_source: where ``mpp0`` comes from: "cohort" and "option", or what a grid recorded.
        reader: one of ``READERS``; ``auto`` chooses by content, and takes the direct TIFF reader only where a few
            tiles come out as OpenSlide reads them.
        force_scale: ``mpp0`` is right, whatever the file says.

    Raises:
        SlideError: missing or unreadable file, no mpp anywhere, or one that contradicts the metadata.
        ConfigError: unknown reader, or the reading libraries are not installed.
    """
    check_reader(reader)
    path = Path(path)
    if not path.exists():
        raise SlideError(f"{path}: no such slide file")
    try:
        from mhim.slides import choose
    except ModuleNotFoundError as error:
        raise ConfigError(f"slides cannot be read ({error}); pip install 'mhim[slides]'") from None
    if reader == "openslide":
        return choose.OpenSlideSlide(path, slide_id, mpp0, mpp0_source, force_scale)
    if reader == "image":
        return choose.PictureSlide(path, slide_id, mpp0, mpp0_source, force_scale)
    open_file = choose.open_tiff if reader == "tiff" else choose.open_by_content
    return open_file(path, slide_id, mpp0, mpp0_source, force_scale)


def check_reader(reader: str) -> None:
    """Refuse a reader that does not exist.

    Raises:
        ConfigError: not one of ``READERS``.
    """
    if reader not in READERS:
        raise ConfigError(f"unknown reader '{reader}'; known: {', '.join(READERS)}")
