"""Measuring: each entry in a process of its own, all of them in turn, bag after bag, round after round."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from mhim.bench.result import BenchConfig, BenchResult, EntryResult, Measured, Phase
from mhim.bench.worker import Ready, Said, Task, rows_needed, serve
from mhim.errors import ConfigError
from mhim.provenance import environment
from mhim.registry import loaded_plugins
from mhim.training.fit import choose_device

DIED = "its process died (out of memory?); give smaller --sizes, or fewer --models"


@dataclass
class Entrant:
    """An entry's process in one phase, and what it has said: one list a round, the warm-up first."""

    name: str
    line: Connection
    process: BaseProcess
    ready: Ready | None = None
    said: list[list[tuple[int, Said]]] = field(default_factory=list)
    failed: str | None = None

    def hear(self) -> Any:
        """Its next answer, or None when it failed."""
        try:
            answer = self.line.recv()
        except (EOFError, ConnectionError):
            answer = DIED
        if isinstance(answer, str):
            self.failed = answer
            return None
        return answer

    def take(self, first: int, size: int) -> None:
        """One bag of the round that is on."""
        with contextlib.suppress(OSError):
            self.line.send((first, size))
        answer = self.hear()
        if answer is not None:
            self.said[-1].append((size, answer))


def run_bench(config: BenchConfig, on_round: Callable[[str], None] = lambda what: None) -> BenchResult:
    """Measure every entry.

    Args:
        config: see there.
        on_round: called with what was done after each of an entry's rounds, ``(rounds + 1) x phases x entries`` times.

    Returns:
        The result; an entry that failed says why, the others are whole.

    Raises:
        ConfigError: no such device.
    """
    try:
        device = choose_device(config.device)
    except RuntimeError as error:
        raise ConfigError(f"--device {config.device}: {str(error).splitlines()[0]}") from None
    found = {name: EntryResult() for name in config.models}
    said = device.type
    with _bags(config) as bags:
        for phase in config.phases:
            with _entrants(config, phase, bags) as entrants:
                _rounds(config, phase, entrants, on_round)
            for entrant in entrants:
                said = entrant.ready.device if entrant.ready else said
                found[entrant.name] = _with_phase(found[entrant.name], phase, entrant)
    return BenchResult(config=config, device=said, environment=environment(str(device)), entries=found)


def _rounds(config: BenchConfig, phase: Phase, entrants: list[Entrant], on_round: Callable[[str], None]) -> None:
    """A warm-up epoch whose bags ascend, then the measured ones; entries take turns within each."""
    for number in range(config.rounds + 1):
        sizes = list(enumerate(config.epoch))
        for entrant in entrants:
            entrant.said.append([])
            for first, size in sizes if number else sorted(sizes, key=lambda each: each[1]):
                if entrant.failed is None:
                    entrant.take(first, size)
            on_round(f"{entrant.name} {phase}")


@contextlib.contextmanager
def _bags(config: BenchConfig) -> Iterator[Path]:
    """A file of random rows that all bags are parts of."""
    with tempfile.TemporaryDirectory(prefix="mhim-bench-") as folder:
        path = Path(folder) / "rows"
        rng = np.random.default_rng(config.seed)
        with path.open("wb") as file:
            for start in range(0, rows_needed(config), 4096):
                rows = min(4096, rows_needed(config) - start)
                file.write(rng.standard_normal((rows, config.in_dim), dtype=np.float32).astype(config.stored).data)
        yield path


@contextlib.contextmanager
def _entrants(config: BenchConfig, phase: Phase, bags: Path) -> Iterator[list[Entrant]]:
    """The processes of a phase, set up one after the other."""
    entrants: list[Entrant] = []
    context = get_context("spawn")
    try:
        for name in config.models:
            ours, theirs = context.Pipe()
            task = Task(name, phase, config, bags, loaded_plugins())
            process = context.Process(target=serve, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            entrants.append(Entrant(name, ours, process))
            entrants[-1].ready = entrants[-1].hear()
        yield entrants
    finally:
        for entrant in entrants:
            with contextlib.suppress(OSError):
                entrant.line.send(None)
        for entrant in entrants:
            entrant.process.join(5)
            entrant.process.terminate()


def _with_phase(so_far: EntryResult, phase: Phase, entrant: Entrant) -> EntryResult:
    if entrant.failed is not None or entrant.ready is None:
        return so_far.model_copy(update={"failed": f"{phase}: {entrant.failed}"})
    return so_far.model_copy(update={"parameters": entrant.ready.parameters, phase: summarise(entrant.said)})


def summarise(said: list[list[tuple[int, Said]]]) -> Measured:
    """The numbers of an entry from its rounds of (size, answer), the warm-up first."""
    warm_up, rounds = said[0], said[1:]
    by_size: dict[int, list[Said]] = {}
    for size, answer in (each for one in rounds for each in one):
        by_size.setdefault(size, []).append(answer)
    first = {}
    for size, answer in warm_up:
        first.setdefault(size, answer.peak_bytes)
    peaks = [answer.peak_bytes for one in said for _, answer in one if answer.peak_bytes is not None]
    return Measured(
        epoch_wall_s=tuple(sum(answer.wall_s for _, answer in one) for one in rounds),
        epoch_cpu_s=tuple(sum(answer.cpu_s for _, answer in one) for one in rounds),
        step_wall_s={size: statistics.median(each.wall_s for each in by_size[size]) for size in sorted(by_size)},
        step_cpu_s={size: statistics.median(each.cpu_s for each in by_size[size]) for size in sorted(by_size)},
        peak_bytes=max(peaks, default=None),
        step_peak_bytes=first,
        resident_bytes=tuple(one[-1][1].resident_bytes for one in said),
    )
