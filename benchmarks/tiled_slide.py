"""Write a pyramidal, tiled JPEG slide of any size for benchmarks.

    python benchmarks/tiled_slide.py slide.svs

Aperio's layout (levels 1, 4, 16), Q80, 4:2:0, about 19 kB per 256 px tile, which is what scanned tissue costs.
The picture repeats every 4096 px, so every level is exact and nothing but one period is ever held in memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

PERIOD_PX = 4096
STAINS = {"haematoxylin": (0.65, 0.70, 0.29), "eosin": (0.07, 0.99, 0.11)}


def band_noise(rng: np.random.Generator, side_px: int, low: float, high: float, power: float = 1.0) -> NDArray:
    """A periodic random field of unit deviation with wavelengths from ``low`` to ``high`` pixels."""
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.rfftfreq(side_px)[None])
    gain = np.where((frequency > 1 / high) & (frequency < 1 / low), 1 / np.maximum(frequency, 1e-9) ** power, 0)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side_px, side_px))) * gain, s=(side_px, side_px))
    return (field / field.std()).astype(np.float32)


def tissue_period(seed: int = 0) -> NDArray[np.uint8]:
    """One period of stained tissue, (4096, 4096, 3) uint8, that joins itself on all sides."""
    rng = np.random.default_rng(seed)
    nuclei = 1 / (1 + np.exp(-4 * (band_noise(rng, PERIOD_PX, 24, 60, 0) - 1.1)))
    chromatin = 1 + 0.35 * band_noise(rng, PERIOD_PX, 3, 12, 1)
    fibres = band_noise(rng, PERIOD_PX, 3, 200, 1.0)
    amounts = {"haematoxylin": 0.08 + 0.9 * nuclei * chromatin, "eosin": np.clip(0.35 + 0.20 * fibres, 0, None)}
    pixels = np.empty((PERIOD_PX, PERIOD_PX, 3), np.uint8)
    for channel in range(3):
        density = sum(amounts[name] * absorbance[channel] for name, absorbance in STAINS.items())
        noise = rng.normal(0, 7.0, density.shape)
        pixels[..., channel] = np.clip(243 * np.exp(-np.clip(density, 0, None)) + noise, 0, 255)
    return pixels


def encoded(period: NDArray[np.uint8], side_px: int, tile_px: int, quality: int) -> Iterator[bytes]:
    """The JPEG tiles of a square level that repeats ``period``, in raster order; equal ones are encoded once."""
    made: dict[tuple[int, int], bytes] = {}
    wrapped = np.tile(period, (1 + -(-tile_px // len(period)),) * 2 + (1,))
    for top in range(0, side_px, tile_px):
        for left in range(0, side_px, tile_px):
            y, x = top % len(period), left % len(period)
            if (y, x) not in made:
                tile = np.ascontiguousarray(wrapped[y : y + tile_px, x : x + tile_px])
                made[y, x] = imagecodecs.jpeg8_encode(tile, level=quality, subsampling="420")
            yield made[y, x]


def write_tiled_slide(
    path: Path, side_px: int = 20480, tile_px: int = 256, mpp: float = 0.25, quality: int = 80
) -> int:
    """Write the slide; the mean bytes of a level-0 tile."""
    period = tissue_period()
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for downsample in (1, 4, 16):
            size = PERIOD_PX // downsample
            level = period if downsample == 1 else cv2.resize(period, (size, size), interpolation=cv2.INTER_AREA)
            side = side_px // downsample
            text = f"Aperio Image Library v12\n{side_px}x{side_px} ({tile_px}x{tile_px}) JPEG/YCC Q={quality}"
            writer.write(
                encoded(level, side, tile_px, quality),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=f"{text}|AppMag = {round(10 / mpp)}|MPP = {mpp:g}" if downsample == 1 else text,
                metadata=None,
            )
    with tifffile.TiffFile(path) as file:
        return int(np.mean(file.pages[0].databytecounts))  # pyright: ignore


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--side-px", type=int, default=20480)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--mpp", type=float, default=0.25)
    options = parser.parse_args()
    size = write_tiled_slide(options.path, options.side_px, options.tile_px, options.mpp)
    print(f"{options.path}: {options.path.stat().st_size / 1e6:.0f} MB, {size / 1000:.1f} kB a tile")
