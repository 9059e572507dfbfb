"""Several devices: one process each, slides dealt out by their number of tiles."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py

from mhim.encode.config import EncodeConfig, build_encoder
from mhim.encode.jobs import EncodeJob, SlideEnd
from mhim.encode.pipeline import Pipeline
from mhim.errors import ArtefactError, MhimError, SlideError
from mhim.pool import end_with_parent
from mhim.registry import load_installed_plugins, load_plugin, loaded_plugins

Message = SlideEnd | int | MhimError


def encode_on_devices(
    jobs: Sequence[EncodeJob],
    devices: Sequence[str],
    config: EncodeConfig,
    workers: int,
    on_end: Callable[[SlideEnd], None],
    on_tiles: Callable[[int], None],
) -> None:
    """Encode slides in one process a device.

    The slides of a process that dies are reported as failed; the other processes go on.

    Args:
        jobs: the slides.
        devices: one entry a process; a device may be named more than once.
        config: what is wanted.
        workers: reading threads of each process.
        on_end: called with each slide's end.
        on_tiles: called with numbers of tiles as they are done.

    Raises:
        MhimError: what stops one process stops all: the encoder cannot be built, or the disk is full.
    """
    context, open_ends, processes = get_context("spawn"), {}, []
    wanted = config.model_dump(mode="json")  # plain values: the classes of plugins are not known there yet
    try:
        for device, share in zip(devices, deal_out(jobs, len(devices)), strict=True):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, share, device, len(devices), wanted, workers, loaded_plugins())
            process = context.Process(target=_encode_share, args=arguments)
            process.start()
            theirs.close()
            processes.append(process)
            open_ends[ours] = (device, {job.slide_id for job in share})
        _listen(open_ends, on_end, on_tiles)
    finally:
        _stop(processes)


def _listen(
    open_ends: dict[Connection, tuple[str, set[str]]],
    on_end: Callable[[SlideEnd], None],
    on_tiles: Callable[[int], None],
) -> None:
    while open_ends:
        for pipe in connection.wait(list(open_ends)):
            assert isinstance(pipe, Connection)
            device, waiting = open_ends[pipe]
            try:
                message: Message = pipe.recv()
            except EOFError:
                del open_ends[pipe]
                for slide_id in sorted(waiting):
                    died = SlideError(f"the process on {device} died (out of memory?); run the same command to go on")
                    on_end(SlideEnd.failure(slide_id, died))
                continue
            if isinstance(message, MhimError):
                raise message
            if isinstance(message, SlideEnd):
                waiting.discard(message.slide_id)
                on_end(message)
            else:
                on_tiles(message)


def deal_out(jobs: Sequence[EncodeJob], count: int) -> list[list[EncodeJob]]:
    """The jobs in ``count`` shares of about as many tiles, each in the order of ``jobs``; the same every time."""
    sizes = [_tile_count(job.grid_path) for job in jobs]
    loads, shares = [0] * count, [set[int]() for _ in range(count)]
    for index in sorted(range(len(jobs)), key=lambda index: (-sizes[index], index)):
        least = loads.index(min(loads))
        loads[least] += sizes[index] + 1
        shares[least].add(index)
    return [[jobs[index] for index in sorted(share)] for share in shares]


def _tile_count(grid_path: Path) -> int:
    """Tiles of a grid; 0 where the file cannot be read, which the work on it will report."""
    try:
        with h5py.File(grid_path, "r") as file:
            coords = file["coords"]
            return coords.shape[0] if isinstance(coords, h5py.Dataset) else 0
    except (OSError, KeyError):
        return 0


def _stop(processes: Sequence[BaseProcess]) -> None:
    """End what still runs; a process whose work is done ends by itself."""
    for process in processes:
        process.join(timeout=0.5)
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join()


def _encode_share(
    pipe: Connection,
    jobs: list[EncodeJob],
    device: str,
    device_count: int,
    wanted: dict[str, Any],
    workers: int,
    plugins: tuple[Path, ...],
) -> None:
    """In a process of its own: encode some slides on one device; what becomes of them goes through ``pipe``."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        load_installed_plugins()
        for path in plugins:
            load_plugin(path)
        if device == "cpu":
            import torch

            torch.set_num_threads(max(1, (os.cpu_count() or 1) // device_count))
        config = EncodeConfig.model_validate(wanted)
        Pipeline(build_encoder(config, device), config, workers, pipe.send, pipe.send).run(jobs)
    except MhimError as error:
        pipe.send(error)
    except OSError as error:
        pipe.send(ArtefactError(str(error)))
    pipe.close()
