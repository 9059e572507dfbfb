"""Memory and growth of training and inference; every case in a process of its own, so that peaks do not mix.

Peak is the resident memory over what the process held before: bag, weights, optimiser state, and libraries that
one step on a small bag has loaded.

    python benchmarks/learning_memory.py bag --models mhim-abmil --n 131072 --budgets 48 0
    python benchmarks/learning_memory.py epoch --models mhim-abmil mhim-transmil
    python benchmarks/learning_memory.py inference --models abmil transmil --n 65536 --rounds 5
    python benchmarks/learning_memory.py inference --models abmil --n 1000000 --reference no
    python benchmarks/learning_memory.py growth --n 8192 65536 262144
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from learning_reference import BUILD, reference_forward, reference_step
from learning_step import our_step

from mhim.heap import prepare_memory
from mhim.models import models

WIDTH = 1024
SMALL = 300


def memory(key: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def at_rest() -> float:
    """Resident memory; free parts of the heap are given back first, else what comes next would take them unseen."""
    ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def over(action: Callable[[], object]) -> tuple[float, float]:
    """Peak over what is held now, in MiB, and CPU ms, of an action."""
    before, start = at_rest(), time.process_time()
    action()
    return memory("VmHWM") - before, 1e3 * (time.process_time() - start)


def bag_of(n: int) -> torch.Tensor:
    """A bag of half-precision features; from 512 rows over and over, which costs no time to draw."""
    rows = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(n)).half()
    return rows.repeat(-(-n // 512), 1)[:n]


def training(name: str, n: int, variant: str, budget: int | None, rounds: int) -> dict[str, Any]:
    """One bag, step after step."""
    torch.set_num_threads(1)
    step = reference_step(name, WIDTH, 2, 0) if variant == "reference" else our_step(name, variant, budget)
    bag = bag_of(n).float() if variant == "reference" else bag_of(n)
    step(bag[:SMALL].clone(), 0)
    found = [over(lambda: step(bag, 1)) for _ in range(rounds)]
    return {"peak_mib": max(peak for peak, _ in found[:1]), "cpu_ms": statistics.median(ms for _, ms in found)}


def epochs(name: str, variant: str, bags: int, repeats: int) -> dict[str, Any]:
    """Epochs over bags of log-normal size, median 8192, between 2048 and 20480; peak since the start after each."""
    torch.set_num_threads(1)
    step = reference_step(name, WIDTH, 2, 0) if variant == "reference" else our_step(name, variant)
    generator = torch.Generator().manual_seed(1)
    sizes = (8192 * torch.randn(bags, generator=generator).mul(0.6).exp()).clamp(2048, 20480).int().tolist()
    held = [bag_of(size).float() for size in sizes]
    step(held[0][:SMALL].clone(), 0)
    before, peaks, seconds = at_rest(), [], []
    for _ in range(repeats):
        start = time.process_time()
        for index in torch.randperm(bags, generator=generator).tolist():
            step(held[index], index % 2)
        peaks.append(round(memory("VmHWM") - before))
        seconds.append(round(time.process_time() - start, 2))
    return {"peaks_mib": peaks, "cpu_s": seconds, "instances": sum(sizes)}


def inference(name: str, n: int, variant: str, rounds: int) -> dict[str, Any]:
    """Evaluation of a bag as training's validation takes it: the bag's result alone."""
    torch.set_num_threads(1)
    prepare_memory()
    torch.manual_seed(0)
    if variant == "reference":
        forward, bag = reference_forward(name, WIDTH, 2), bag_of(n).float()
    else:
        model = models.build(models.parse(name), WIDTH, 2).eval()
        bag = bag_of(n) if n > 1 << 17 else bag_of(n).float()

        def forward(features: torch.Tensor) -> object:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", torch.bfloat16, enabled=variant == "bfloat16"),
            ):
                return model(features, instances=False)

    forward(bag[:SMALL].clone())
    found = [over(lambda: forward(bag)) for _ in range(rounds)]
    return {"peak_mib": found[0][0], "cpu_ms": statistics.median(ms for _, ms in found)}


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bag", "epoch", "inference", "growth"])
    parser.add_argument("--models", nargs="+", default=list(BUILD))
    parser.add_argument("--variants", nargs="+", default=["float32"], help="float32, teacher, bfloat16")
    parser.add_argument("--n", nargs="+", type=int, default=[8192])
    parser.add_argument("--budgets", nargs="+", type=int, default=[None], help="MiB that a step may keep")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bags", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--reference", choices=["yes", "no"], default="no")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for variant in [*args.variants, *(["reference"] if args.reference == "yes" else [])]:
            if args.what == "epoch":
                cases = [({}, (epochs, name, variant, args.bags, args.epochs))]
            elif args.what == "inference":
                cases = [({"n": n}, (inference, name, n, variant, args.rounds)) for n in args.n]
            else:
                pairs = [(n, budget) for n in args.n for budget in args.budgets]
                cases = [({"n": n, "budget": b}, (training, name, n, variant, b, args.rounds)) for n, b in pairs]
            for known, call in cases:
                rows.append({"model": name, "variant": variant, **known, **apart(*call)})
                print(" ".join(f"{k}={v:.0f}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()))
    if args.out:
        args.out.write_text(json.dumps({"what": args.what, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
