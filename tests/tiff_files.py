"""Tiled TIFF slides for tests of the direct reader: JPEG as scanners write it, SubIFDs, Aperio's RGB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray


def reduced(pixels: NDArray[np.uint8], factor: int = 2) -> NDArray[np.uint8]:
    """Means of ``factor`` x ``factor`` blocks; a remainder is dropped."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def jpeg_tiles(pixels: NDArray[np.uint8], tile: int, colours: str) -> Iterator[bytes]:
    """Encoded tiles of a picture: ``ycc`` (4:2:0) or ``rgb`` (4:4:4, without any marker that says so)."""
    for top in range(0, pixels.shape[0], tile):
        for left in range(0, pixels.shape[1], tile):
            part = pixels[top : top + tile, left : left + tile]
            missing = (0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)
            whole = np.ascontiguousarray(np.pad(part, missing, mode="edge"))
            if colours == "ycc":
                yield imagecodecs.jpeg8_encode(whole, level=92, subsampling="420")
            else:
                raw = imagecodecs.jpeg8_encode(whole, level=92, colorspace="RGB", outcolorspace="RGB")
                yield without_markers(raw)


def without_markers(stream: bytes) -> bytes:
    """A JPEG stream without application markers and with ids 1, 2, 3: nothing in it says what its colours are."""
    out, at = bytearray(stream[:2]), 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = bytearray(stream[at : at + length])
        if segment[1] == 0xC0:
            for number in range(3):
                segment[10 + 3 * number] = number + 1
        if not 0xE0 <= segment[1] <= 0xEF:
            out += segment
        at += length
    scan = bytearray(stream[at:])
    for number in range(3):
        scan[5 + 2 * number] = number + 1
    return bytes(out + scan)


def write_jpeg(
    path: Path,
    pixels: NDArray[np.uint8],
    mpp: float,
    *,
    levels: int = 1,
    tile: int = 64,
    colours: str = "ycc",
    is_aperio: bool = True,
) -> Path:
    """A pyramid of JPEG tiles, with Aperio's description or as a generic TIFF with resolution tags."""
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            text = "Aperio Image Library v1\nsynthetic" + (f"|AppMag = {10 / mpp:g}|MPP = {mpp:g}" if not level else "")
            resolution = (1e4 / mpp / 2**level,) * 2
            writer.write(
                jpeg_tiles(pixels, tile, colours),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr" if colours == "ycc" else "rgb",
                subsampling=(2, 2) if colours == "ycc" else None,
                compression="jpeg",
                compressionargs={} if colours == "ycc" else {"outcolorspace": "rgb"},
                description=text if is_aperio else None,
                subfiletype=1 if level and not is_aperio else 0,
                metadata=None,
                **({} if is_aperio else {"resolution": resolution, "resolutionunit": "CENTIMETER"}),
            )
            pixels = reduced(pixels)
    return path


def write_ome(path: Path, pixels: NDArray[np.uint8], mpp: float, levels: int = 3, tile: int = 64) -> Path:
    """An OME-TIFF whose coarser levels are SubIFDs of the first."""
    metadata = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    options = {"photometric": "rgb", "tile": (tile, tile), "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(pixels, subifds=levels - 1, metadata=metadata, **options)
        for _ in range(levels - 1):
            pixels = reduced(pixels)
            writer.write(pixels, subfiletype=1, **options)
    return path
