"""Worker processes for slide reading: started once per verb, started again when one dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Self, TypeVar

from mhim.errors import SlideError

T = TypeVar("T")
R = TypeVar("R")


class WorkerPool:
    """Processes that work ahead, results in order.

    Workers are spawned, not forked, and import only what the function's module imports.

    Args:
        workers: number of processes; 0 works in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """The future result of ``function(task)``; with no workers it is computed here and now."""
        if not self.workers:
            return _done(function, task)
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_ignore_interrupt)
        return self._executor.submit(function, task)

    def alone(self, function: Callable[[T], R], task: T) -> R:
        """The result of one task with nothing else in flight.

        Raises:
            SlideError: the worker died on it.
        """
        try:
            return self.submit(function, task).result()
        except BrokenProcessPool:
            raise self._died() from None

    def restart(self) -> None:
        """Drop the processes; the next task starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _died(self) -> SlideError:
        self.restart()
        return SlideError(
            "a worker process died while reading this slide (a crash in the decoder, or out of memory); "
            "try --workers 0 to see it happen here, or fewer workers"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restart()


def _done(function: Callable[[T], R], task: T) -> Future[R]:
    future: Future[R] = Future()
    try:
        future.set_result(function(task))
    except Exception as error:  # noqa: BLE001  (kept for whoever asks for the result, as a process pool does)
        future.set_exception(error)
    return future


def end_with_parent() -> None:
    """Call in a worker: it ends when the process that started it has gone, also when that one was killed."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _ignore_interrupt() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
