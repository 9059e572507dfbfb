"""Plain pictures as slides: PNG, JPEG, and TIFF that is not tiled, held whole in memory."""

from __future__ import annotations

import struct
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from mhim.cohort import slide_name
from mhim.errors import SlideError
from mhim.slides.array import ArraySlide
from mhim.slides.content import is_jpeg, is_png
from mhim.slides.scale import FileScale, resolve_scale
from mhim.slides.tiff_index import ome_mpp, resolution_mpp

MAX_PICTURE_PX = 400_000_000
HEADER_BYTES = 1 << 20


class PictureSlide(ArraySlide):
    """A picture file as a slide: one level, its scale from TIFF tags or given.

    The dots per inch of PNG and JPEG files describe printers and screens, and are not taken for a scale.

    Args:
        path: PNG, JPEG or TIFF file.
        slide_id: its name; by default the file name without suffix.
        mpp0: micrometres per pixel, or None.
        mpp0_source: where ``mpp0`` comes from.
        force_scale: see ``mhim.slides.scale.resolve_scale``.

    Raises:
        SlideError: not a picture of 8-bit RGB or grey, damaged, larger than 400 megapixels, or without scale.
    """

    reader = "image"
    reader_version = ", ".join(f"{name} {version(name)}" for name in ("imagecodecs", "simplejpeg", "tifffile"))

    def __init__(
        self,
        path: Path,
        slide_id: str | None = None,
        mpp0: float | None = None,
        mpp0_source: str = "option",
        force_scale: bool = False,
    ) -> None:
        self._given = (path, slide_id, mpp0, mpp0_source, force_scale)
        try:
            size_px, found = _facts(path)
        except (ValueError, struct.error, tifffile.TiffFileError) as error:
            raise SlideError(f"{path}: not a picture that can be read: {error}") from None
        if size_px[0] * size_px[1] > MAX_PICTURE_PX:
            raise SlideError(
                f"{path}: a plain picture of {size_px[0]} x {size_px[1]} px does not fit in memory; "
                f"convert it to a tiled, pyramidal TIFF"
            )
        scale = resolve_scale(path, found, mpp0, mpp0_source, force_scale)
        try:
            pixels = as_rgb(_pixels(path))
        except (ValueError, RuntimeError, tifffile.TiffFileError) as error:
            raise SlideError(f"{path}: not a picture that can be read: {error}") from None
        super().__init__(pixels, scale.mpp, slide_id or slide_name(path), scale.source)
        self.notes = (scale.note,) if scale.note else ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


def as_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 from grey, grey with alpha, RGB or RGBA; transparent is white.

    Raises:
        ValueError: another shape or more than 8 bits.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, expected 8-bit grey or RGB")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    colour, has_alpha = pixels, pixels.shape[2] in (2, 4)
    if has_alpha:
        alpha = pixels[..., -1:].astype(np.uint16)
        colour = ((pixels[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    return np.ascontiguousarray(colour)


def _facts(path: Path) -> tuple[tuple[int, int], FileScale]:
    """Size (w, h) and scale, from the header alone."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if is_png(head):
        width, height = struct.unpack(">II", head[16:24])
        return (width, height), FileScale()
    if is_jpeg(head):
        height, width = simplejpeg.decode_jpeg_header(head, strict=False)[:2]
        return (int(width), int(height)), FileScale()
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        return (page.imagewidth, page.imagelength), FileScale(ome_mpp(tiff), resolution_mpp(page))


def _pixels(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    if is_png(data):
        return imagecodecs.png_decode(data)
    if is_jpeg(data):
        return simplejpeg.decode_jpeg(data)
    return tifffile.imread(path, key=0)
