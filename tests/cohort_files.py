"""A small cohort on disk, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mhim.bag import Bag, save_bag


def write_cohort(folder: Path, n_cases: int = 24, slides_per_case: int = 1, dim: int = 6, seed: int = 0) -> Path:
    """A cohort with bags: positive slides hold a few instances that are shifted along the first feature."""
    rng = np.random.default_rng(seed)
    lines = ["slide_id,case_id,label"]
    for case in range(n_cases):
        positive = case % 2
        for number in range(slides_per_case):
            slide_id = f"s{case:02d}_{number}"
            features = rng.normal(size=(int(rng.integers(20, 40)), dim)).astype(np.float32)
            truth = np.zeros(len(features), dtype=np.float32)
            if positive:
                truth[: len(features) // 4] = 1
                features[: len(features) // 4, 0] += 2.5
            xy_px0 = np.stack([np.arange(len(features)) * 100, np.zeros(len(features))], axis=1).astype(np.int64)
            attributes = {"encoder": "test", "mpp": 0.5, "tile_size_level0": 100.0}
            save_bag(folder / "features" / f"{slide_id}.h5", Bag(slide_id, features, xy_px0, attributes, truth))
            lines.append(f"{slide_id},c{case:02d},{'tumour' if positive else 'normal'}")
    table = folder / "cohort.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
