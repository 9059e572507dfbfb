"""One loop for every verb that works slide by slide: progress, resume, failures collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mhim.errors import MhimError

T = TypeVar("T")
console = Console(stderr=True, soft_wrap=True)


class Outcome(Enum):
    """What a work item came to."""

    DONE = "done"
    SKIPPED = "skipped"


@dataclass
class BatchResult:
    """Names of the items by what became of them; ``failed`` maps a name to its one-line reason.

    ``remarks`` are lines about the batch as a whole.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when nothing failed, else 1."""
        return 1 if self.failed else 0


def progress_bar(transient: bool = False) -> Progress:
    """A progress bar on standard error: text, bar, count, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


def run_batch(items: Sequence[T], work: Callable[[T], Outcome], *, name: Callable[[T], str], label: str) -> BatchResult:
    """Run ``work`` on every item; one item's error does not stop the others.

    Args:
        items: what to work on, in order.
        work: does one item and says whether it was done or skipped.
        name: the item's name in messages.
        label: text before the progress bar.

    Returns:
        What was done, skipped and failed. ``KeyboardInterrupt`` passes through: finished items are kept.
    """
    result = BatchResult()
    with progress_bar() as progress:
        task = progress.add_task(label, total=len(items))
        for item in items:
            progress.update(task, description=f"{label} {escape(name(item))}")
            try:
                outcome = work(item)
            except Exception as error:  # noqa: BLE001  (one broken slide must not stop the cohort; it is reported)
                result.failed[name(item)] = describe_failure(error)
            else:
                (result.done if outcome is Outcome.DONE else result.skipped).append(name(item))
            progress.advance(task)
        progress.update(task, description=label)
    return result


def describe_failure(error: BaseException) -> str:
    """Why an item failed, one line."""
    if isinstance(error, MhimError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"


def print_result(result: BatchResult, noun: str = "slide") -> None:
    """Print the remarks, a table of failures with their reasons, and the counts."""
    for line in result.remarks:
        console.print(line, markup=False, highlight=False)
    if result.failed:
        print_failures(result.failed.items(), noun)
    counts = [f"{len(result.done)} done", f"{len(result.skipped)} already complete", f"{len(result.failed)} failed"]
    console.print(", ".join(counts))


def print_failures(failures: Iterable[tuple[str, str]], noun: str) -> None:
    """Print names and one-line reasons on standard error: a table in a terminal, else a line each."""
    if not console.is_terminal:
        for name, reason in failures:
            console.print(f"error {name}: {reason}", markup=False, highlight=False)
        return
    table = Table(title="failed", title_justify="left", show_lines=False)
    table.add_column(noun, overflow="fold")
    table.add_column("why, and what to do", overflow="fold")
    for name, reason in failures:
        table.add_row(escape(name), escape(reason))
    console.print(table)
