"""A folder of grids -> a folder of bags, on one device or several."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.progress import Progress

from mhim.batch import progress_bar
from mhim.encode.config import EncodeConfig, build_encoder, resolve_devices
from mhim.encode.devices import encode_on_devices
from mhim.encode.jobs import EncodeResult, SlideEnd, encode_jobs
from mhim.encode.pipeline import Pipeline

MAX_WORKERS = 8


def encode_grids(
    tiles: Path,
    out: Path,
    config: EncodeConfig | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
) -> EncodeResult:
    """Encode every grid of a folder: ``out/<slide_id>.h5`` for each.

    The features do not depend on the number of workers, devices or shards.

    Args:
        tiles: folder of grid files, or one grid file.
        out: folder to write.
        config: encoder and storage.
        workers: threads that read tiles for each device; 0 reads between batches; by default one a core, up to 8.
        overwrite: replace outputs that were made by another configuration or input.
        shard: (i, n), to work on every n-th slide from the i-th, i from 1.

    Returns:
        What was done, skipped and failed; one slide's failure does not stop the others.

    Raises:
        ConfigError: the encoder cannot be built, or a device is not there.
        ArtefactError: no grids, or the disk is full.
    """
    config = config or EncodeConfig()
    jobs = encode_jobs(tiles, out, overwrite, shard)
    devices = resolve_devices(config.device)
    if workers is None:
        workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // len(devices)))
    result = EncodeResult()
    with progress_bar() as progress:
        seen = _Progress(progress, len(jobs), result)
        if len(devices) > 1:
            encode_on_devices(jobs, devices, config, workers, seen.on_end, seen.on_tiles)
        else:
            encoder = build_encoder(config, devices[0])
            Pipeline(encoder, config, workers, seen.on_end, seen.on_tiles).run(jobs)
    result.sort([job.slide_id for job in jobs])
    return result


class _Progress:
    """Counts slides and tiles, and shows them."""

    def __init__(self, progress: Progress, slides: int, result: EncodeResult) -> None:
        self._progress, self._result = progress, result
        self._task = progress.add_task("encode", total=slides)
        self._tiles, self._start = 0, time.monotonic()

    def on_end(self, end: SlideEnd) -> None:
        self._result.add(end)
        self._progress.advance(self._task)

    def on_tiles(self, count: int) -> None:
        self._tiles += count
        rate = self._tiles / max(time.monotonic() - self._start, 1e-3)
        self._progress.update(self._task, description=f"encode {self._tiles:,} tiles ({rate:.0f}/s)")
