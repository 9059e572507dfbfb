"""Writing a slide: pyramidal, tiled JPEG TIFF with its scale, as OpenSlide reads it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

from mhim.artefacts import atomic_path

TILE_PX = 256
LEVEL_DOWNSAMPLES = (1, 4, 16)


def write_slide(path: Path, image: np.ndarray, mpp: float, *, jpeg_quality: int, description: str) -> None:
    """Write an image as a slide, atomically; equal arguments give equal bytes.

    Args:
        path: ``.tiff`` file.
        image: uint8 (h, w, 3) RGB; sides are multiples of the largest of ``LEVEL_DOWNSAMPLES``.
        mpp: micrometres per pixel.
        jpeg_quality: 0 to 100.
        description: ASCII text for the first level's ImageDescription.
    """
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary) as writer:
        for downsample in LEVEL_DOWNSAMPLES:
            height, width = image.shape[0] // downsample, image.shape[1] // downsample
            level = image if downsample == 1 else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            writer.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": jpeg_quality},
                subfiletype=0 if downsample == 1 else 1,
                resolution=(1e4 / mpp / downsample, 1e4 / mpp / downsample),
                resolutionunit="CENTIMETER",
                description=description if downsample == 1 else None,
                software="mhim synth",
                metadata=None,
                maxworkers=1,
            )
