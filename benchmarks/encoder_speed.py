"""Images per second of the encoders on one thread, and how far bfloat16 moves the features.

python benchmarks/encoder_speed.py SLIDE      (CMU-1-Small-Region.svs, or any slide with 16 tissue tiles)
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mhim.encoders import encoders
from mhim.slides import open_slide
from mhim.tiles import TileSpec, plan_tiles
from mhim.tissue import TissueConfig, segment_tissue

BATCH, ROUNDS = 16, 5
CASES = [
    ("efficientnet-lite0", "float32"),
    ("efficientnet-lite0", "bfloat16"),
    ("efficientnet-lite0-mid", "float32"),
    ("efficientnet-lite0-mid", "bfloat16"),
    ("colour", None),
]


def tiles_of(path: Path, side_px: int) -> np.ndarray:
    """The first tissue tiles (16, side, side, 3) uint8 of a slide at 0.5 um per pixel."""
    with open_slide(path) as slide:
        tissue = segment_tissue(slide, TissueConfig())
        spec = TileSpec.model_validate({"size_px": side_px, "mpp": 0.5})
        xy_px0 = plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, slide.slide_id)[:BATCH]
        return np.stack([slide.read((int(x), int(y)), (side_px, side_px), 0.5) for x, y in xy_px0])


def cosine(first: np.ndarray, second: np.ndarray) -> str:
    """Smallest and mean cosine between the rows of two feature matrices."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    values = (first * second).sum(axis=1) / norms
    return f"{values.min():.4f} / {values.mean():.4f}"


def main(path: Path) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    built = {
        case: encoders.build(encoders.parse({"name": case[0]} | ({"precision": case[1]} if case[1] else {})))
        for case in CASES
    }
    for side_px in (128, 224):
        tiles = tiles_of(path, side_px)
        seconds: dict[tuple[str, str | None], list[float]] = {case: [] for case in CASES}
        for encoder in built.values():
            encoder.encode(tiles)
        for _ in range(ROUNDS):
            for case, encoder in built.items():
                start = time.process_time()
                encoder.encode(tiles)
                seconds[case].append(time.process_time() - start)
        for (name, precision), spent in seconds.items():
            rate = BATCH / statistics.median(spent)
            print(f"{side_px} px  {name:24s} {precision or '-':9s} {rate:6.0f} images per CPU second")
    for name in ("efficientnet-lite0", "efficientnet-lite0-mid"):
        exact, fast = (built[name, precision].encode(tiles) for precision in ("float32", "bfloat16"))
        print(f"bfloat16 against float32, {name}: cosine min / mean {cosine(exact, fast)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
