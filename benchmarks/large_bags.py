"""CPU time and peak memory of one evaluation pass of every aggregator on one large bag, one thread.

python benchmarks/large_bags.py [100000]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import torch

from mhim.models import models

WIDTH = 1024


def one(name: str, instances: int) -> None:
    """Print the row of a model; runs in a process of its own, so that peaks do not mix."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.build(models.parse(name), WIDTH, 2).eval()
    features = torch.rand(instances, WIDTH)
    with torch.inference_mode():
        model(features[:100])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        model(features)
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    over = (peak - before) / 1024
    print(f"{name:10s} {instances} x {WIDTH}: {seconds:6.2f} CPU s, {over:6.0f} MiB over the bag", flush=True)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    context = multiprocessing.get_context("spawn")
    for known in models:
        process = context.Process(target=one, args=(known, count))
        process.start()
        process.join()
