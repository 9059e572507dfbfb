"""Draw random weights and bags, and write small.npz: weights, bags, and what the formulas give for them.

Run from the repository root: .venv/bin/python tests/golden/make_small_golden.py

The file holds all arrays end to end in ``numbers`` (float64), and in ``index`` (JSON) each one's name and shape:
``bag/N``, ``CASE/weights/TENSOR`` and ``CASE/N/QUANTITY``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mil_oracle import CASES, CLASSES, DIM, IN_DIM

from mhim.models import models

FILE = Path(__file__).with_name("small.npz")
SIZES = (1, 2, 7, 31)


def draw(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal numbers that float16 holds exactly."""
    return (random.normal(size=shape) * scale).astype(np.float16).astype(np.float64)


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(20230715)
    arrays = {f"bag/{n}": draw(random, (n, IN_DIM), 1.0) for n in SIZES}
    for case, (options, formulas) in CASES.items():
        model = models.build(models.parse({**options, "dim": DIM}), IN_DIM, CLASSES)
        tensors = {key: draw(random, tuple(value.shape), 0.5) for key, value in model.state_dict().items()}
        arrays |= {f"{case}/weights/{key}": value for key, value in tensors.items()}
        for n in SIZES:
            found = formulas(tensors, arrays[f"bag/{n}"])
            arrays |= {f"{case}/{n}/{name}": np.asarray(value) for name, value in found.items()}
    index = json.dumps([(name, value.shape) for name, value in arrays.items()])
    numbers = np.concatenate([value.ravel() for value in arrays.values()])
    np.savez_compressed(FILE, numbers=numbers, index=np.array(index))


if __name__ == "__main__":
    main()
