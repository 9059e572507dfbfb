"""Results of ``mhim bench`` as tables of texts."""

from __future__ import annotations

from collections.abc import Sequence

from mhim.bench.result import PHASE_NAMES, BenchResult, Change, Measured, Phase

Rows = tuple[list[str], list[list[str]]]
MIB = 1 << 20


def cost_table(result: BenchResult, reference: str | None = None) -> Rows:
    """The cost table: parameters, seconds and peak memory of an epoch; behind a time how many times the reference's."""
    unit = "CPU s" if result.basis == "cpu" else "s"
    header = ["model", "parameters"]
    for phase in result.config.phases:
        header += [f"{PHASE_NAMES[phase]}, {unit} an epoch", "MiB over the bags"]
    rows = []
    for name, entry in result.entries.items():
        if entry.failed is not None:
            continue
        row = [name, f"{entry.parameters:,}"]
        for phase in result.config.phases:
            one = entry.phase(phase)
            row += ["-", "-"] if one is None else [_time(result, one, phase, reference), _mib(one.peak_bytes)]
        rows.append(row)
    return header, rows


def growth_table(result: BenchResult, phase: Phase) -> Rows:
    """Time and peak memory of one bag by its size, and how time grows between the two largest: 1 is linear."""
    unit = "CPU ms" if result.basis == "cpu" else "ms"
    what = "a training step" if phase == "train" else "a prediction"
    sizes = [f"N = {size}" for size in result.config.sizes]
    header = [f"{what}: {unit}, MiB", *sizes, "growth"]
    rows = []
    for name, entry in result.entries.items():
        one = entry.phase(phase)
        if one is not None:
            times = one.step_s(result.basis)
            cells = [f"{1e3 * times[n]:.1f}, {_mib(one.step_peak_bytes[n])}" for n in result.config.sizes]
            growth = one.growth(result.basis)
            rows.append([name, *cells, "-" if growth is None else f"N^{growth:.2f}"])
    return header, rows


def change_table(found: Sequence[Change], reference: str) -> Rows:
    """Ratios to the reference before and now."""
    header = [f"over {reference}", "", "before", "now", "change", ""]
    rows = [
        [
            each.entry,
            each.what,
            f"{each.before:.3f}",
            f"{each.now:.3f}",
            f"{each.factor - 1:+.1%}",
            f"worse than {each.tolerance:+.0%}" if each.is_worse else "",
        ]
        for each in found
    ]
    return header, rows


def _time(result: BenchResult, one: Measured, phase: Phase, reference: str | None) -> str:
    text = f"{one.epoch_s(result.basis):.3f}"
    base = result.entries[reference].phase(phase) if reference in result.entries else None
    return text if base is None else f"{text} ({one.epoch_s(result.basis) / base.epoch_s(result.basis):.2f}x)"


def _mib(octets: float | None) -> str:
    return "-" if octets is None else f"{max(octets, 0) / MIB:.0f}"
