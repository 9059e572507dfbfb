"""What an entry costs: parameters of the deployed model, time and memory of its training, measured alone."""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from mhim.artefacts import read_json, write_json
from mhim.bench.meter import Meter
from mhim.bench.worker import start_apart
from mhim.checkpoint import load_model
from mhim.compare.plan import Planned
from mhim.methods import methods
from mhim.models.contract import count_parameters
from mhim.registry import loaded_plugins
from mhim.training.crossval import RunPlan, build_model, store_of
from mhim.training.epoch import train_epoch
from mhim.training.fit import choose_device
from mhim.training.step import BagStep, adam

EPOCHS = 3


@dataclass(frozen=True)
class Cost:
    """Cost of training one fold, and size of what is deployed.

    Attributes:
        parameters: of the deployed aggregator.
        seconds_per_epoch: median wall time of an epoch over the training bags of fold 0, bags in memory.
        cpu_seconds_per_epoch: median processor time of the same epochs; another program's load does not change it.
        peak_memory_mb: on an accelerator its peak of allocated memory; else by how much the process grew from before
            the model was built to its peak. 10^6 bytes. None where the system does not say.
        device: what it was measured on.
        threads: processor threads.
    """

    parameters: int
    seconds_per_epoch: float
    cpu_seconds_per_epoch: float
    peak_memory_mb: float | None
    device: str
    threads: int

    @property
    def seconds(self) -> float:
        """What the table says: processor time on a processor, wall time on an accelerator."""
        return self.cpu_seconds_per_epoch if self.device == "cpu" else self.seconds_per_epoch


def cost_of(run: Planned, file: Path, epochs: int = EPOCHS) -> Cost:
    """The cost of an entry, from its file when that was measured for this run, else measured in its own process."""
    if file.is_file():
        known = read_json(file)
        if known.get("identity") == run.plan.identity:
            return Cost(**known["cost"])
    cost = measure_apart(run.plan, run.baseline, epochs)
    write_json(file, {"identity": run.plan.identity, "cost": asdict(cost)})
    return cost


def measure_apart(plan: RunPlan, baseline: Path | None, epochs: int) -> Cost:
    """``measure`` in a process of its own: no other entry's memory is counted."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_apart, (loaded_plugins(),)) as pool:
        return pool.submit(measure, plan, baseline, epochs).result()


def measure(plan: RunPlan, baseline: Path | None, epochs: int) -> Cost:
    """Train fold 0 for a warm-up epoch and a few measured ones; nothing is written."""
    config = plan.config
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    device = choose_device(config.train.device)
    fold = plan.splits.folds[0]
    train = store_of(config, plan.cohort).part(fold.train)
    for bag in train:  # read every page now, so that neither disks nor the bags' own memory are measured
        bag.features.sum()
    meter = Meter(device)
    meter.rest()
    generator = torch.Generator().manual_seed(config.seed)
    start = None if baseline is None else load_model(baseline / f"fold_{fold.index}" / "model.safetensors")
    model = build_model(plan, generator)
    parameters = count_parameters(model)
    method = methods.build(config.method, model, start).to(device)
    optimiser = adam(method, config.train.lr, config.train.weight_decay)
    stepping = BagStep(method, optimiser, config.train.precision)
    taken = [
        meter.timed(
            lambda epoch=epoch: train_epoch(
                stepping, train, epoch, max(config.train.epochs, epochs + 1), generator, portion=config.train.portion
            )
        )
        for epoch in range(epochs + 1)
    ]
    peak = meter.peak()
    return Cost(
        parameters=parameters,
        seconds_per_epoch=statistics.median(each.wall_s for each in taken[1:]),
        cpu_seconds_per_epoch=statistics.median(each.cpu_s for each in taken[1:]),
        peak_memory_mb=None if peak is None else peak / 1e6,
        device=meter.name,
        threads=torch.get_num_threads(),
    )
