"""Time and memory of work on a device. The device is waited for only around what is timed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Taken:
    """What some work took: wall time, and processor time of this process, in seconds."""

    wall_s: float
    cpu_s: float


class Meter:
    """Measures on one device.

    Memory is counted above a point of rest: on CUDA what PyTorch allocated, else resident memory of the process
    (Linux). Pages of files that are resident when the peak is forgotten do not count, for the system takes them away
    and gives them back as it likes. None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._rest: float | None = None
        self._files = 0.0

    def timed(self, work: Callable[[], object]) -> Taken:
        """Do some work to its end on the device."""
        self._synchronise()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self._synchronise()
        return Taken(time.perf_counter() - wall, time.process_time() - cpu)

    def rest(self) -> None:
        """Count memory from here on."""
        gc.collect()
        _give_back_free_memory()
        self._synchronise()
        self.forget_peak()
        self._rest = self.resident()

    def forget_peak(self) -> None:
        """Look for the peak from here on; the point of rest stays."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        self._files = (_status("RssFile") or 0.0) + (_status("RssShmem") or 0.0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._rest = None

    def peak(self) -> float | None:
        """Most memory in use since the peak was forgotten, above rest, in bytes."""
        on_cuda = self.device.type == "cuda"
        highest = float(torch.cuda.max_memory_allocated(self.device)) if on_cuda else _status("VmHWM")
        return None if highest is None or self._rest is None else highest - self._rest - self._files

    def resident(self) -> float | None:
        """Memory in use now, in bytes, without pages of files."""
        on_cuda = self.device.type == "cuda"
        return float(torch.cuda.memory_allocated(self.device)) if on_cuda else _status("RssAnon")

    @property
    def name(self) -> str:
        """The device by the name of its model."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def _give_back_free_memory() -> None:
    """Have glibc return what is free, else later work takes it unseen."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> float | None:
    """A value of /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
