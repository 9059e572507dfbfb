"""Slides for tests: drawn in memory, written as pyramidal TIFF by tifffile, read back by OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray


def checkerboard(width: int, height: int, side: int) -> NDArray[np.uint8]:
    """Black and white squares of ``side`` pixels, (h, w, 3); the first one is black."""
    y, x = np.mgrid[:height, :width]
    return np.repeat((((x // side + y // side) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)


def stained(width: int, height: int, box: tuple[int, int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A noisy near-white slide with pink, textured tissue in ``box`` (left, top, right, bottom)."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(241, 2, (height, width, 3))
    left, top, right, bottom = box
    texture = rng.normal(0, 12, (bottom - top, right - left, 1))
    pixels[top:bottom, left:right] = np.array([205, 130, 175]) + texture
    return pixels.clip(0, 255).astype(np.uint8)


def write_tiff(path: Path, pixels: NDArray[np.uint8], mpp: float | None, levels: int = 1, tile: int = 64) -> Path:
    """A tiled, losslessly compressed pyramid; each level is the 2 x 2 mean of the one before."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            writer.write(
                pixels,
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if level else 0,
                metadata=None,
                **(resolution if level == 0 else {}),
            )
            height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
            blocks = pixels[: height * 2, : width * 2].reshape(height, 2, width, 2, 3)
            pixels = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return path
