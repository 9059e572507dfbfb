"""Stored tiles: from the bytes of one TIFF tile to pixels. Decoding releases the interpreter lock.

JPEG streams in TIFF are abbreviated: the tables are in a tag, and the colour space is what the tag says, which the
stream itself may not repeat (Aperio writes RGB without Adobe's marker). Both are spliced into the stream here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

JPEG, JPEG_2000 = (7,), (33005, 34712)
LOSSLESS = (1, 5, 8, 32946, 50000)
REDUCTIONS = (1, 2, 4, 8)
RGB = 2
WHITE = 255

START, END, APP0 = b"\xff\xd8", b"\xff\xd9", b"\xff\xe0"


class Decoder(Protocol):
    """Turns the bytes of one tile into pixels; safe in several threads at once."""

    @property
    def reductions(self) -> tuple[int, ...]:
        """Factors at which it can decode directly, smallest first; 1 is always there."""
        ...

    def __call__(self, data: bytes, index: int, reduction: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` (tile height / reduction, tile width / reduction, 3) uint8 with the tile ``index``.

        Raises:
            ValueError: the bytes are not what they should be.
        """
        ...


@dataclass(frozen=True)
class JpegDecoder:
    """JPEG tiles through libjpeg-turbo: exact integer transform and smooth chroma, as OpenSlide decodes.

    Attributes:
        head: start of the stream with tables and colour space, to replace a tile's own start; empty: nothing to add.
        is_rgb: the components are red, green and blue.
    """

    head: bytes
    is_rgb: bool
    reductions: tuple[int, ...] = REDUCTIONS

    def __call__(self, data: bytes, index: int, reduction: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a tile; see ``Decoder``."""
        if self.head:
            data = self.head + self._body(data)
        height, width = out.shape[:2]
        if reduction == 1:
            decoded = simplejpeg.decode_jpeg(data, buffer=out)
        else:
            decoded = simplejpeg.decode_jpeg(data, buffer=out, min_width=width, min_height=height)
        if decoded.shape != out.shape:
            raise ValueError(f"a tile of {decoded.shape[1]} x {decoded.shape[0]} px, expected {width} x {height}")

    def _body(self, data: bytes) -> bytes:
        """What follows the start of a stream; JFIF's marker, which would mean YCbCr, is left out of RGB."""
        if not data.startswith(START):
            raise ValueError("not a JPEG stream")
        if self.is_rgb and data[2:4] == APP0:
            return data[4 + int.from_bytes(data[4:6], "big") :]
        return data[2:]


@dataclass(frozen=True)
class Jpeg2000Decoder:
    """JPEG 2000 tiles of red, green and blue, through OpenJPEG."""

    reductions: tuple[int, ...] = (1,)

    def __call__(self, data: bytes, index: int, reduction: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a tile; see ``Decoder``."""
        try:
            _fit(imagecodecs.jpeg2k_decode(data, numthreads=1), out)
        except imagecodecs.Jpeg2kError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class LosslessDecoder:
    """Tiles without loss (none, LZW, deflate, zstd), through tifffile."""

    decode: Callable[..., Any]
    reductions: tuple[int, ...] = (1,)

    def __call__(self, data: bytes, index: int, reduction: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a tile; see ``Decoder``."""
        try:
            _fit(self.decode(data, index)[0][0], out)
        except (RuntimeError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from None


def decoder_of(page: Any) -> Decoder | None:
    """The decoder for the tiles of a TIFF page, or None where they are left to OpenSlide."""
    compression = int(page.compression)
    if compression in JPEG:
        is_rgb = page.photometric == RGB
        return JpegDecoder(_head(page.jpegtables or b"", is_rgb), is_rgb)
    if page.photometric != RGB:
        return None
    if compression in JPEG_2000:
        return Jpeg2000Decoder()
    return LosslessDecoder(page.decode) if compression in LOSSLESS else None


def _head(tables: bytes, is_rgb: bool) -> bytes:
    """Start of a stream: the shared tables, and Adobe's marker that says which colours the components are."""
    if not tables and not is_rgb:
        return b""
    adobe = b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, 0 if is_rgb else 1])
    return START + adobe + tables.removeprefix(START).removesuffix(END)


def _fit(tile: Any, out: NDArray[np.uint8]) -> None:
    """Copy a decoded tile, which may be cut at the edge of the image, into its place."""
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        raise ValueError(f"a tile of {tile.dtype} {tile.shape}, expected uint8 RGB")
    if tile.shape != out.shape:
        out[...] = WHITE
    height, width = min(tile.shape[0], out.shape[0]), min(tile.shape[1], out.shape[1])
    out[:height, :width] = tile[:height, :width]
