"""CPU time and wall time of one training step, ours beside a plain reading of the published one, interleaved.

python benchmarks/learning_step.py --threads 1 --n 8192 --rounds 5 -o learning_step.json
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import torch
from learning_reference import BUILD, reference_step
from torch.nn import functional as F  # noqa: F401  (loaded before anything is timed)

from mhim.bench import make_step

GOALS = {"mhim-abmil": 2.7, "mhim-transmil": 2.6, "transmil": 2.8, "abmil": 1.75, "clam-mb": 1.6, "dtfd": 2.2}
GOALS |= {"dsmil": 1.4, "mhim-dsmil": 1.8}


def ours(name: str, seed: int, precision: str, teacher: str):
    """Our step of a reference's name."""
    method = "supervised"
    if name.startswith("mhim-"):
        name, method = name.removeprefix("mhim-"), {"name": "mhim-v1", "teacher_precision": teacher}
    model = {"name": name} | ({"dropout": 0.25} if name == "dtfd" else {})
    return make_step(model, method, in_dim=1024, n_classes=2, seed=seed, precision=precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BUILD))
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", default=["float32", "teacher-bf16", "bfloat16"])
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features = torch.randn(args.n, 1024, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, list[float]]] = {}
    for name in args.models:
        steps = {"reference": reference_step(name, 1024, 2, 0)}
        for variant in args.variants:
            if variant == "teacher-bf16" and not name.startswith("mhim-"):
                continue
            precision = "bfloat16" if variant == "bfloat16" else "float32"
            steps[variant] = ours(name, 0, precision, "bfloat16" if variant == "teacher-bf16" else "float32")
        taken = found.setdefault(name, {})
        for number in range(args.rounds + 1):
            for variant, step in steps.items():
                gc.collect()
                wall, cpu = time.perf_counter(), time.process_time()
                step(features, number % 2)
                if number:
                    taken.setdefault(variant, []).append(1e3 * (time.process_time() - cpu))
                    taken.setdefault(f"{variant} wall", []).append(1e3 * (time.perf_counter() - wall))
        measure = "" if args.threads == 1 else " wall"
        base = statistics.median(taken["reference" + measure])
        text = [f"reference {base:7.1f} ms"]
        for variant in list(steps)[1:]:
            mine = statistics.median(taken[variant + measure])
            text.append(f"{variant} {mine:7.1f} ms = {base / mine:4.2f}x")
        print(f"{name:14s} {'  '.join(text)}  (goal {GOALS[name]})", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"n": args.n, "threads": args.threads, "ms": found}, indent=1))


if __name__ == "__main__":
    main()
