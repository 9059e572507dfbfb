"""A table of texts, and numbers as the tables write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mhim.evaluation import Estimate, format_estimate
from mhim.training.runs import Run


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row is its heading."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float | None, digits: int = 3) -> str:
    """The value rounded; a dash where undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(said: Mapping[str, Any], key: str = "value") -> str:
    """``0.912 [0.850, 0.961]`` from an entry of ``metrics.json`` with ``low`` and ``high``."""
    low, high = said["low"], said["high"]
    return format_estimate(Estimate(said[key], None if low is None or high is None else (low, high)))


def run_name(run: Run, runs: Sequence[Run]) -> str:
    """Title of a run; folder and seed are added where several runs share it."""
    alone = sum(other.config.title == run.config.title for other in runs) == 1
    return run.config.title if alone else f"{run.config.title}, {run.path.name}, seed {run.config.seed}"
