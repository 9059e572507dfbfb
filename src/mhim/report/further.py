"""What stands beside the headline: errors of the probabilities, temperature, operating points, prediction sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhim.calibration import TEMPERATURES
from mhim.metrics import FURTHER_METRICS
from mhim.report.table import Table, number, with_interval

NAMES = {
    "accuracy": "accuracy",
    "kappa": "Cohen's kappa",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "specificity_at_95_sensitivity": "specificity at 95 % sensitivity",
    "log_loss": "log loss (lower is better)",
    "brier": "Brier score (lower is better)",
    "ece": "ECE (lower is better)",
}
"""Names of ``metrics.FURTHER_METRICS``, as the page writes them."""

Named = Sequence[tuple[str, Mapping[str, Any]]]


def further_tables(names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Tables of the further statistics of some runs; empty where no run has any.

    Args:
        names: of the runs.
        metrics: what :func:`mhim.evaluation.evaluate_run` says of each.
    """
    known = [(name, said["further"]) for name, said in zip(names, metrics, strict=True) if "further" in said]
    if not known:
        return []
    tables = [_values(known)]
    for key, make in _CHOSEN.items():
        having = [(name, found) for name, found in known if found.get(key)]
        if having:
            tables.append(make(having))
    return tables


def _values(known: Named) -> Table:
    """One row a metric, one column a run; mean over folds."""
    rows = [
        [NAMES.get(metric, metric), *(with_interval(found["metrics"][metric], "fold_mean") for _, found in known)]
        for metric in FURTHER_METRICS
    ]
    rows.append(["ECE, bins of equal mass", *(number(found["ece_equal_mass"]) for _, found in known)])
    if any(found["delong"] for _, found in known):
        rows.append(["AUROC with DeLong's interval", *(_delong(found["delong"]) for _, found in known)])
    header = ["metric", *(name for name, _ in known)]
    return Table("Mean over folds with 95 % intervals; no threshold or temperature of the test slides", header, rows)


def _delong(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    p_value = found["p"]
    said = "" if p_value is None else ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.3f}"
    return with_interval(found) + said


def _operating(known: Named) -> Table:
    rows = []
    for name, found in known:
        for rule, said in found["operating_points"].items():
            values = [number(said[rate]) for rate in ("sensitivity", "specificity", "ppv", "npv")]
            rows.append([f"{name}: {_rule(rule)}", *values, ", ".join(number(cut) for cut in said["thresholds"])])
    header = ("threshold chosen on validation", "sensitivity", "specificity", "PPV", "NPV", "threshold by fold")
    return Table("Operating points on the test slides, mean over folds", header, rows)


def _rule(name: str) -> str:
    """``sensitivity>=0.95`` in words."""
    if name == "youden":
        return "Youden index"
    kind, _, target = name.partition(">=")
    return f"{kind} at least {target}"


def _temperature(known: Named) -> Table:
    rows = []
    for name, found in known:
        said = found["temperature"]
        errors = [f"{number(said[key]['before'])} to {number(said[key]['after'])}" for key in _ERRORS]
        rows.append([name, ", ".join(_degree(value) for value in said["folds"]), *errors])
    header = ("model", "temperature by fold", *(f"{title}: before to after" for title in _ERRORS.values()))
    return Table("A temperature chosen on validation, and what it does to the test slides", header, rows)


def _degree(value: float | None) -> str:
    """A temperature; the end of the range that was searched is a bound, not a value."""
    most = TEMPERATURES[1]
    return f"at least {most:g}" if value is not None and value > 0.999 * most else number(value, 2)


_ERRORS = {"log_loss": "log loss", "brier": "Brier score", "ece": "ECE"}


def _sets(known: Named) -> Table:
    rows = []
    for name, found in known:
        said = found["conformal"]
        decided = "-" if said["decided"] is None else f"{said['decided']:.0%}"
        rows.append(
            [
                name,
                f"{said['promised']:.0%}",
                "-" if said["covered"] is None else f"{said['covered']:.1%}",
                number(said["mean_size"], 2),
                decided,
                number(said["accuracy_decided"]),
            ]
        )
    header = (
        "model",
        "promised",
        "sets that hold the true class",
        "classes a set",
        "one class alone",
        "right of these",
    )
    return Table("Conformal prediction sets, bounds chosen on validation", header, rows)


_CHOSEN: dict[str, Callable[[Named], Table]] = {
    "operating_points": _operating,
    "temperature": _temperature,
    "conformal": _sets,
}
