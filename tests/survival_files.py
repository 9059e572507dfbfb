"""A small survival cohort on disk: the share of shifted instances of a case sets its hazard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mhim.bag import Bag, save_bag

HEADER = "slide_id,case_id,time,event"


def write_survival_cohort(folder: Path, n_cases: int = 60, dim: int = 2, seed: int = 0) -> Path:
    """Times shrink with the share, with log-normal noise; about a third is censored; every fifth case has two slides,
    and only the second of them holds the shifted instances."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for case in range(n_cases):
        share = rng.uniform(0, 0.6)
        time, censoring = 40 * np.exp(-6 * share + rng.normal(0, 0.3)), rng.uniform(0, 40)
        outcome = f"{min(time, censoring):.4f},{int(time <= censoring)}"
        slides = 2 if case % 5 == 0 else 1
        for number in range(slides):
            features = rng.normal(size=(20, dim)).astype(np.float32)
            if number == slides - 1:
                features[: round(20 * share * slides), 0] += 3
            attributes = {"encoder": "test", "mpp": 0.5, "tile_size_level0": 100.0}
            slide_id = f"s{case:02d}_{number}"
            save_bag(folder / "features" / f"{slide_id}.h5", Bag(slide_id, features, attributes=attributes))
            lines.append(f"{slide_id},c{case:02d},{outcome}")
    table = folder / "cohort.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
