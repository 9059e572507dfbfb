"""Cost of small bags: a step for each, one step on their mean loss bag by bag, and that step in one pass.

The three are taken in turn, round after round, in one process. CPU time, median over rounds.

    python benchmarks/several_bags.py --bags 32 --sizes 64 512 --rounds 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import mhim.training.step as step_module
from mhim.bench.step import LR, WEIGHT_DECAY, make_method
from mhim.heap import keep_heap
from mhim.methods import Step
from mhim.training.step import BagStep, adam

SUBJECTS = {
    "abmil": ("abmil", "supervised"),
    "clam-mb": ("clam-mb", "supervised"),
    "dsmil": ("dsmil", "supervised"),
    "mean": ("mean", "supervised"),
    "max": ("max", "supervised"),
    "mhim-abmil": ("abmil", "mhim-v1"),
    "mhim-dsmil": ("dsmil", "mhim-v1"),
    "mhim-v2-abmil": ("abmil", "mhim-v2"),
    "transmil": ("transmil", "supervised"),
}
WAYS = {"a step each": (1, 1 << 40), "one step, bag by bag": (None, 0), "one step, one pass": (None, 1 << 40)}


def draw_bags(count: int, smallest: int, largest: int, seed: int = 0) -> list[Tensor]:
    """Bags of 1024 features whose sizes are spread evenly on a logarithmic scale."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([smallest, largest], dtype=torch.float64).log()
    sizes = (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)).exp().round()
    return [torch.randn(int(size), 1024, generator=generator) for size in sizes]


def taker(name: str, bags: list[Tensor], together: int | None, rows: int) -> Callable[[], None]:
    """A function that trains once on every bag.

    Args:
        name: of a subject.
        bags: features.
        together: bags of a step, None for all.
        rows: most rows of several bags in one pass.
    """
    method = make_method(*SUBJECTS[name], 1024, 2, 0, torch.device("cpu"))
    stepping = BagStep(method, adam(method, LR, WEIGHT_DECAY))
    labels = [torch.tensor(at % 2) for at in range(len(bags))]
    size, generator = together or len(bags), torch.Generator().manual_seed(0)

    def take() -> None:
        step_module.PACKED_ROWS["cpu"] = rows
        for start in range(0, len(bags), size):
            stepping.take(bags[start : start + size], labels[start : start + size], Step(0, 1 << 30, generator))

    return take


def measure(name: str, bags: list[Tensor], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of all bags, by way."""
    takers = {way: taker(name, bags, *options) for way, options in WAYS.items()}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for at in range(rounds + 1):
        for way, take in takers.items():
            began = time.process_time()
            take()
            if at:
                found[way].append(1e3 * (time.process_time() - began))
    return found


def main() -> None:
    """Print one line a model: milliseconds of each way, and how many times the first way's speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--bags", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs=2, default=[64, 512], help="smallest and largest bag")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_heap()
    bags, results = draw_bags(args.bags, *args.sizes), {}
    print(f"{len(bags)} bags of {args.sizes[0]} to {args.sizes[1]}, {sum(map(len, bags))} instances, CPU ms")
    for name in args.models:
        found = results[name] = measure(name, bags, args.rounds)
        median = {way: statistics.median(values) for way, values in found.items()}
        first = next(iter(median.values()))
        line = [f"{way} {value:.0f} ({first / value:.2f}x)" for way, value in median.items()]
        print(f"{name}: {', '.join(line)}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"sizes": args.sizes, "bags": args.bags, "cpu_ms": results}, indent=1))


if __name__ == "__main__":
    main()
