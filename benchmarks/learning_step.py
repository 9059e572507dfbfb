"""Time of one training step: ours beside a plain reading of the published one, each in a process of its own.

The steps are called in turn, round after round, so that whatever else the machine does meets both alike.

    python benchmarks/learning_step.py --threads 1 --n 8192 --rounds 5 -o learning_step.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from learning_reference import BUILD, reference_step

from mhim.bench import make_step

GOALS = {"mhim-abmil": 2.7, "mhim-transmil": 2.6, "transmil": 2.8, "abmil": 1.75, "clam-mb": 1.6, "dtfd": 2.2}
GOALS |= {"dsmil": 1.4, "mhim-dsmil": 1.8}
_REST_S = 0.1
"""Between steps. OpenMP's idle threads spin for some 10 ms after a step, on the core that the next process needs."""
VARIANTS = {"float32": ("float32", "float32"), "teacher": ("float32", "bfloat16"), "bfloat16": ("bfloat16", "bfloat16")}


def our_step(name: str, variant: str, budget_mib: int | None = None) -> Callable[[torch.Tensor, int], object]:
    """Our step under a reference's name; ``budget_mib`` may be kept for the gradient."""
    precision, teacher = VARIANTS[variant]
    model: dict[str, object] = {"name": name.removeprefix("mhim-")}
    if name == "dtfd":
        model["dropout"] = 0.25
    method = {"name": "mhim-v1", "teacher_precision": teacher} if name.startswith("mhim-") else "supervised"
    return make_step(model, method, in_dim=1024, n_classes=2, seed=0, precision=precision, activation_mib=budget_mib)


def serve(name: str, variant: str, n: int, threads: int, line: Connection) -> None:
    """A process that takes one step whenever it is asked, and answers with its CPU and wall time in ms."""
    torch.set_num_threads(threads)
    features = torch.randn(n, 1024, generator=torch.Generator().manual_seed(0))
    step = reference_step(name, 1024, 2, 0) if variant == "reference" else our_step(name, variant)
    step(features, 0)
    line.send("ready")
    while line.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        step(features, 1)
        line.send((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))


def measure(name: str, variants: list[str], n: int, threads: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall times of a model's steps, by variant."""
    context, lines = get_context("spawn"), {}
    for variant in variants:
        ours, theirs = Pipe()
        context.Process(target=serve, args=(name, variant, n, threads, theirs), daemon=True).start()
        lines[variant] = ours
        ours.recv()
    found: dict[str, dict[str, list[float]]] = {variant: {"cpu_ms": [], "wall_ms": []} for variant in variants}
    for _ in range(rounds):
        for variant, line in lines.items():
            time.sleep(_REST_S)
            line.send(True)
            cpu, wall = line.recv()
            found[variant]["cpu_ms"].append(cpu)
            found[variant]["wall_ms"].append(wall)
    for line in lines.values():
        line.send(False)
    return found


def main() -> None:
    """Print one line a model: milliseconds, and how many times the reference's speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BUILD))
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    unit = "cpu_ms" if args.threads == 1 else "wall_ms"
    print(f"N = {args.n}, D = 1024, {args.threads} thread(s), median {unit} of {args.rounds} rounds (least to most)")
    results = {}
    for name in args.models:
        variants = [each for each in ("reference", *VARIANTS) if each != "teacher" or name.startswith("mhim-")]
        found = results[name] = measure(name, variants, args.n, args.threads, args.rounds)
        base = statistics.median(found["reference"][unit])
        cells = []
        for variant in variants:
            times = found[variant][unit]
            middle = statistics.median(times)
            cells.append(f"{variant} {middle:.0f} ({min(times):.0f}-{max(times):.0f}) = {base / middle:.2f}x")
        print(f"{name:14s} {'  '.join(cells)}  goal {GOALS[name]}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"n": args.n, "threads": args.threads, "results": results}, indent=1))


if __name__ == "__main__":
    main()
