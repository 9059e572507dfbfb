"""Difference of tiles between the direct reader and OpenSlide: python benchmarks/reader_difference.py SLIDE ..."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mhim.slides import open_slide

TILES, TILE_PX = 30, 224


def main() -> None:
    """Print the largest and the mean difference of 30 random tiles, at the slide's scale and at twice that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path, nargs="+")
    options = parser.parse_args()
    for path in options.slides:
        with open_slide(path, mpp0=0.5) as slide, open_slide(path, mpp0=0.5, reader="openslide") as reference:
            most = np.array(slide.size_px0) - 2 * TILE_PX
            corners = np.random.default_rng(0).integers(0, most, (TILES, 2))
            ours, theirs = (np.empty((TILES, TILE_PX, TILE_PX, 3), np.uint8) for _ in range(2))
            for mpp in (slide.mpp0, 2 * slide.mpp0):
                for mode in ("parity", "fast"):
                    slide.read_many(corners, TILE_PX, mpp, ours, mode)
                    reference.read_many(corners, TILE_PX, mpp, theirs, mode)
                    gap = np.abs(ours.astype(np.int16) - theirs)
                    print(f"{path.name} {slide.reader} {mpp:g} um {mode}: max {gap.max()}, mean {gap.mean():.2f}")


if __name__ == "__main__":
    main()
