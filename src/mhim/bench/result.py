"""What ``mhim bench`` measured: settings, numbers by entry, its file, and its comparison with an earlier one."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mhim.artefacts import read_json
from mhim.bench.yardstick import YARDSTICK
from mhim.config import Settings, validate
from mhim.entries import Entry
from mhim.errors import ArtefactError, ConfigError
from mhim.training.step import Precision

Phase = Literal["train", "infer"]
PHASES: tuple[Phase, ...] = ("train", "infer")
PHASE_NAMES = {"train": "training", "infer": "inference"}
SMALL_BYTES = 32 << 20
"""Peaks below this are noise of the process; their ratios are not judged."""


class BenchConfig(Settings):
    """What is measured."""

    models: tuple[str, ...] = Field(description="entries: aggregators, or behind mhim- or mhim-v2-, or yardstick")
    sizes: tuple[int, ...] = Field((1024, 4096, 16384), min_length=1, description="instances of the bags, in turn")
    bags: int = Field(6, ge=1, description="bags of an epoch")
    in_dim: int = Field(1024, ge=1, description="feature width")
    classes: int = Field(2, ge=2, description="classes")
    stored: Literal["float16", "float32"] = Field("float16", description="dtype of the features")
    rounds: int = Field(3, ge=1, description="measured epochs, after a warm-up one; entries take turns")
    device: str = Field("cpu", description="auto, cpu, cuda, cuda:1, mps")
    precision: Precision = Field("float32", description="of the matrix products: float32 or bfloat16")
    threads: int = Field(1, ge=1, description="processor threads")
    seed: int = Field(0, ge=0, description="seed of weights, bags, masks")
    phases: tuple[Phase, ...] = Field(PHASES, min_length=1, description="train, infer")

    @field_validator("models")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name != YARDSTICK:
                Entry.parse(name)
        if not names:
            raise ValueError("names nothing")
        return tuple(dict.fromkeys(names))

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1:
            raise ValueError("a bag needs an instance")
        return tuple(sorted(set(sizes)))

    @property
    def epoch(self) -> tuple[int, ...]:
        """Sizes of the bags of an epoch, in their order."""
        return tuple(self.sizes[index % len(self.sizes)] for index in range(max(self.bags, len(self.sizes))))


class Measured(Settings):
    """One phase of an entry. Bytes are above a point of rest that holds bags, weights and optimiser state."""

    epoch_wall_s: tuple[float, ...] = Field(description="seconds of each measured epoch")
    epoch_cpu_s: tuple[float, ...] = Field(description="processor seconds of each measured epoch")
    step_wall_s: dict[int, float] = Field(description="median seconds of a bag, by its size")
    step_cpu_s: dict[int, float] = Field(description="median processor seconds of a bag, by its size")
    peak_bytes: float | None = Field(description="peak over all epochs")
    step_peak_bytes: dict[int, float | None] = Field(description="peak of the first bag of each size, sizes ascending")
    resident_bytes: tuple[float | None, ...] = Field(description="memory in use after each epoch, warm-up first")

    def epoch_s(self, basis: str) -> float:
        """Median seconds of an epoch, "wall" or "cpu"."""
        return statistics.median(self.epoch_wall_s if basis == "wall" else self.epoch_cpu_s)

    def step_s(self, basis: str) -> dict[int, float]:
        """Median seconds of a bag by its size."""
        return self.step_wall_s if basis == "wall" else self.step_cpu_s

    def growth(self, basis: str) -> float | None:
        """Exponent of the growth of time with N between the two largest sizes: 1 is linear."""
        times = sorted(self.step_s(basis).items())
        if len(times) < 2:
            return None
        (few, short), (many, long) = times[-2:]
        return math.log(long / short) / math.log(many / few)


class EntryResult(Settings):
    """One entry: parameters of the deployed aggregator, its phases, or why it failed."""

    parameters: int | None = None
    train: Measured | None = None
    infer: Measured | None = None
    failed: str | None = None

    def phase(self, phase: Phase) -> Measured | None:
        """What was measured in a phase."""
        return self.train if phase == "train" else self.infer


class BenchResult(Settings):
    """The content of a result file."""

    kind: Literal["mhim bench"] = "mhim bench"
    version: Literal[1] = 1
    config: BenchConfig
    device: str = Field(description="the device by its name")
    environment: dict[str, Any] = Field(description="versions, code and processor")
    entries: dict[str, EntryResult]

    @property
    def basis(self) -> Literal["cpu", "wall"]:
        """What ratios are of: processor time of one thread, which other programs hardly change, else wall time."""
        return "cpu" if self.config.threads == 1 and self.device == "cpu" else "wall"


def read_result(path: Path) -> BenchResult:
    """The result in a file.

    Raises:
        ArtefactError: missing, or not written by ``mhim bench -o``.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != "mhim bench":
        raise ArtefactError(f"{path}: not a result of mhim bench; make one with 'mhim bench -o {path.name}'")
    return validate(BenchResult, content, str(path))


@dataclass(frozen=True)
class Change:
    """One number of an entry as a multiple of the reference's, before and now.

    Attributes:
        entry: whose number.
        what: "training time", "inference memory", ...
        before: ratio to the reference in the earlier run.
        now: ratio to the reference in this run.
        tolerance: by how much the ratio may grow, as a share of itself.
    """

    entry: str
    what: str
    before: float
    now: float
    tolerance: float

    @property
    def factor(self) -> float:
        """How the ratio changed; above 1 it worsened."""
        return self.now / self.before

    @property
    def is_worse(self) -> bool:
        """Whether it worsened by more than the tolerance."""
        return self.factor > 1 + self.tolerance


SAME = ("sizes", "bags", "in_dim", "classes", "stored", "precision", "threads")


def changes(now: BenchResult, before: BenchResult, reference: str, tolerance: float) -> list[Change]:
    """Time and memory of each entry over the reference's of the same run, now beside before. Seconds are not compared.

    Raises:
        ConfigError: the two were not measured alike, or lack the reference.
    """
    other = [key for key in SAME if getattr(now.config, key) != getattr(before.config, key)]
    if other or now.basis != before.basis:
        what = ", ".join(f"{key} {getattr(before.config, key)}" for key in other) or f"{before.basis} time"
        raise ConfigError(f"--against: was measured with other settings ({what}); give the same, or measure it again")
    for result, name in ((now, "this run"), (before, "--against")):
        if reference not in result.entries or result.entries[reference].failed:
            raise ConfigError(f"--reference {reference}: is not in {name} (there: {', '.join(result.entries)})")
    found = []
    for name in now.entries:
        if name != reference and name in before.entries:
            for phase in PHASES:
                found += _of_phase(now, before, name, reference, phase, tolerance)
    return found


def _of_phase(
    now: BenchResult, before: BenchResult, name: str, reference: str, phase: Phase, tolerance: float
) -> list[Change]:
    ours, base = (now.entries[each].phase(phase) for each in (name, reference))
    old, old_base = (before.entries[each].phase(phase) for each in (name, reference))
    if ours is None or base is None or old is None or old_base is None:
        return []
    times = [each.epoch_s(now.basis) for each in (old, old_base, ours, base)]
    what = PHASE_NAMES[phase]
    found = [Change(name, f"{what} time", times[0] / times[1], times[2] / times[3], tolerance)]
    peaks = [each.peak_bytes or 0.0 for each in (old, old_base, ours, base)]
    if min(peaks[1], peaks[3]) >= SMALL_BYTES and max(peaks[0], peaks[2]) >= SMALL_BYTES:
        floor = [max(peak, SMALL_BYTES) for peak in peaks]
        found.append(Change(name, f"{what} memory", floor[0] / floor[1], floor[2] / floor[3], tolerance))
    return found
