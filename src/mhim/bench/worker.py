"""A process that takes one training step, or one evaluation, whenever it is asked, and says what that took."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mhim.batch import describe_failure
from mhim.bench.meter import Meter
from mhim.bench.result import BenchConfig, Phase
from mhim.bench.step import make_method, make_step
from mhim.bench.yardstick import YARDSTICK, logits_of, make_yardstick, yardstick_step
from mhim.entries import Entry
from mhim.heap import prepare_memory
from mhim.models import count_parameters
from mhim.pool import end_with_parent
from mhim.registry import load_installed_plugins, load_plugin
from mhim.training.fit import choose_device

WARM_UP_ROWS = 1024
"""Bag of the step before rest: code is loaded and buffers of the libraries are there."""
Work = Callable[[Tensor, int], object]


@dataclass(frozen=True)
class Task:
    """What a process measures: a phase of an entry, on bags that all processes map from one file."""

    entry: str
    phase: Phase
    config: BenchConfig
    bags: Path
    plugins: tuple[Path, ...]


@dataclass(frozen=True)
class Ready:
    """First answer: it is set up."""

    parameters: int
    device: str


@dataclass(frozen=True)
class Said:
    """Answer to one bag: seconds, and bytes above rest and in use."""

    wall_s: float
    cpu_s: float
    peak_bytes: float | None
    resident_bytes: float | None


def start_apart(plugins: tuple[Path, ...]) -> None:
    """First thing in a process of its own: it ends with its parent, and knows the plugins."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    load_installed_plugins()
    for path in plugins:
        load_plugin(path)


def serve(task: Task, line: Connection) -> None:
    """Answer ``Ready``, then ``Said`` for each bag (its first row, its size) until None comes; a text is a failure."""
    try:
        start_apart(task.plugins)
        _serve(task, line)
    except Exception as error:  # noqa: BLE001  (said to the parent, which goes on with the others)
        line.send(describe_failure(error))


def _serve(task: Task, line: Connection) -> None:
    config = task.config
    torch.set_num_threads(config.threads)
    prepare_memory()
    meter = Meter(choose_device(config.device))
    rows = map_rows(task.bags, config)
    touch(rows)
    work, parameters = WORK[task.phase](task.entry, config, meter.device)
    work(rows[:WARM_UP_ROWS], 0)
    meter.rest()
    line.send(Ready(parameters, meter.name))
    while (asked := line.recv()) is not None:
        first, size = asked
        bag = rows[first : first + size]
        touch(bag)  # so that its pages are there, and are not counted
        meter.forget_peak()
        taken = meter.timed(lambda bag=bag, label=first % config.classes: work(bag, label))
        line.send(Said(taken.wall_s, taken.cpu_s, meter.peak(), meter.resident()))


def touch(rows: Float[Tensor, "rows in_dim"]) -> None:
    """Read from every page of some mapped rows."""
    rows.view(torch.uint8).reshape(-1)[::1024].sum()


def rows_needed(config: BenchConfig) -> int:
    """Rows of the file that bags are parts of: bag i begins at row i."""
    return max(WARM_UP_ROWS, max(config.sizes) + len(config.epoch))


def map_rows(path: Path, config: BenchConfig) -> Float[Tensor, "rows in_dim"]:
    """The rows that all bags are parts of, mapped."""
    count = rows_needed(config) * config.in_dim
    return torch.from_file(str(path), shared=False, size=count, dtype=getattr(torch, config.stored)).reshape(
        -1, config.in_dim
    )


def _training(entry: str, config: BenchConfig, device: torch.device) -> tuple[Work, int]:
    if entry == YARDSTICK:
        model = make_yardstick(config.in_dim, config.classes, config.seed, device)
        return yardstick_step(model, device, config.precision), count_parameters(model)
    parts = Entry.parse(entry)
    place = (parts.model, parts.method, config.in_dim, config.classes, config.seed)
    parameters = count_parameters(make_method(*place, device).model)
    return make_step(*place, config.precision, str(device)), parameters


def _inference(entry: str, config: BenchConfig, device: torch.device) -> tuple[Work, int]:
    """The deployed aggregator's prediction of a bag, without what it can say about instances."""
    if entry == YARDSTICK:
        plain = make_yardstick(config.in_dim, config.classes, config.seed, device)
        return _evaluating(lambda bag: logits_of(plain, bag, device), config, device), count_parameters(plain)
    parts = Entry.parse(entry)
    model = make_method(parts.model, parts.method, config.in_dim, config.classes, config.seed, device).model.eval()
    return _evaluating(lambda bag: model(bag, instances=False), config, device), count_parameters(model)


def _evaluating(forward: Callable[[Tensor], object], config: BenchConfig, device: torch.device) -> Work:
    def work(features: Tensor, label: int) -> object:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"),
        ):
            return forward(features)

    return work


WORK: dict[Phase, Callable[[str, BenchConfig, torch.device], tuple[Work, int]]] = {
    "train": _training,
    "infer": _inference,
}
