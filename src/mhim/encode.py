"""The work of ``mhim encode``: grid files -> bags of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny

import mhim
from mhim.bag import ATTRIBUTES, Bag, read_attributes, save_bag
from mhim.batch import BatchResult, Outcome, run_batch
from mhim.config import ComponentConfig, Settings, fingerprint
from mhim.encoders import Encoder, encoders
from mhim.errors import ArtefactError, ConfigError, SlideError
from mhim.pool import WorkerPool
from mhim.resume import is_complete
from mhim.slides import open_slide
from mhim.slides.resample import TRANSFORM
from mhim.tile_io import load_grid
from mhim.tile_reader import ReadJob, SlideSource, forget_slide, read_tiles
from mhim.tiles import TileGrid

READ_TILES = 32
READS_AHEAD = 2

EncoderConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(encoders.parse)]


class EncodeConfig(Settings):
    """What ``mhim encode`` does with the tiles."""

    encoder: EncoderConfig = Field(
        default_factory=lambda: encoders.parse("efficientnet-lite0-mid"), description="encoder and its options"
    )
    storage: Literal["float16", "float32"] = Field(default="float16", description="dtype of the stored features")
    batch_size: int = Field(default=64, ge=1, description="tiles encoded at once; does not change what is computed")
    device: str = Field(default="auto", description="auto (an accelerator where there is one), cpu, cuda, cuda:1, mps")

    def fingerprint(self, encoder: Encoder) -> str:
        """Digest of what decides the features: encoder, its weights, and storage."""
        return fingerprint(
            {"encoder": self.encoder.model_dump(mode="json"), "storage": self.storage, **encoder.attributes()}
        )


@dataclass(frozen=True)
class EncodeJob:
    """One grid to encode."""

    grid_path: Path
    out: Path
    overwrite: bool = False

    @property
    def slide_id(self) -> str:
        """The slide's name, as the grid file is called."""
        return self.grid_path.stem

    @property
    def path(self) -> Path:
        """The bag file."""
        return self.out / f"{self.slide_id}.h5"

    def input_fingerprint(self) -> str:
        """Identity of the grid: what it was made from and how.

        Raises:
            FeatureError: the grid is missing or not complete.
        """
        attributes = read_attributes(self.grid_path)
        return fingerprint(
            [attributes.get(key) for key in ("config_fingerprint", "input_fingerprint", "tissue_mask_id")]
        )


def encode_jobs(tiles: Path, out: Path, overwrite: bool = False) -> list[EncodeJob]:
    """The work on a folder of grid files, by name, or on one grid file.

    Raises:
        ArtefactError: nothing there, or input and output are the same folder.
    """
    if not tiles.exists():
        raise ArtefactError(f"{tiles}: no such folder; make it with mhim tile")
    grids = sorted(tiles.glob("*.h5")) if tiles.is_dir() else [tiles]
    if not grids:
        raise ArtefactError(f"{tiles}: no grid files (*.h5) here; make them with mhim tile")
    if grids[0].parent.resolve() == out.resolve():
        raise ArtefactError(f"{out}: features would replace the grids; give another folder to -o")
    return [EncodeJob(grid, out, overwrite) for grid in grids]


def encode_grids(
    tiles: Path, out: Path, config: EncodeConfig | None = None, workers: int = 0, overwrite: bool = False
) -> BatchResult:
    """Encode every grid of a folder: ``out/<slide_id>.h5`` for each.

    The features do not depend on the number of workers.

    Args:
        tiles: folder of grid files, or one grid file.
        out: folder to write.
        config: encoder and storage.
        workers: processes that read tiles ahead of the encoder; 0 reads in this process.
        overwrite: replace outputs that were made by another configuration or input.

    Returns:
        What was done, skipped and failed; one slide's failure does not stop the others.

    Raises:
        ConfigError: the encoder cannot be built.
        ArtefactError: no grids.
    """
    config = config or EncodeConfig()
    jobs = encode_jobs(tiles, out, overwrite)
    encoder = build_encoder(config)
    with WorkerPool(workers) as pool:
        try:
            return run_batch(
                jobs,
                lambda job: encode_slide(job, config, encoder, pool),
                name=lambda job: job.slide_id,
                label="encode",
            )
        finally:
            forget_slide()


def build_encoder(config: EncodeConfig) -> Encoder:
    """The encoder that a configuration names, on its device.

    Raises:
        ConfigError: unknown or missing device, or the encoder's weights are not installed.
    """
    return encoders.build(config.encoder, device=resolve_device(config.device))


def resolve_device(device: str) -> str:
    """A device that exists; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{device}' cannot be used ({str(error).splitlines()[0]}); try --device cpu"
        ) from None
    return device


def encode_slide(job: EncodeJob, config: EncodeConfig, encoder: Encoder, pool: WorkerPool) -> Outcome:
    """Encode one slide and write its bag.

    Raises:
        SlideError: the slide is missing, has changed, or a tile cannot be read; a worker died.
        ArtefactError: the output exists and was made by something else.
        FeatureError: the grid is missing or not complete, or the features are not finite.
    """
    config_mark, input_mark = config.fingerprint(encoder), job.input_fingerprint()
    if is_complete(job.path, config_mark, input_mark, job.overwrite):
        return Outcome.SKIPPED
    grid = load_grid(job.grid_path)
    source = _checked_source(grid)
    size_px, mpp = int(grid.attributes["tile_size_px"]), float(grid.attributes["mpp"])
    reads = (ReadJob(source, xy_px0, size_px, mpp) for xy_px0 in _chunks(grid.xy_px0, READ_TILES))
    ahead = READS_AHEAD * pool.workers + config.batch_size // READ_TILES
    tiles = pool.ordered(read_tiles, reads, ahead)
    features = np.concatenate([encoder.encode(batch) for batch in _batches(tiles, config.batch_size)])
    attributes = {key: grid.attributes[key] for key in ATTRIBUTES if key in grid.attributes}
    attributes |= encoder.attributes()
    attributes |= {
        "transform": f"{TRANSFORM}; then {encoder.transform}",
        "config_fingerprint": config_mark,
        "input_fingerprint": input_mark,
        "tool_version": mhim.__version__,
    }
    bag = Bag(grid.slide_id, features, grid.xy_px0, attributes, grid.annotation_fraction)
    save_bag(job.path, bag, config.storage)
    return Outcome.DONE


def _checked_source(grid: TileGrid) -> SlideSource:
    """The slide of a grid, opened once to see that it is still the one that was tiled."""
    attributes = grid.attributes
    source = SlideSource(
        Path(attributes["slide_path"]), grid.slide_id, attributes["slide_mpp"], attributes["slide_mpp_source"]
    )
    with open_slide(source.path, source.slide_id, source.mpp0, source.mpp0_source) as slide:
        size_px0 = (attributes["level0_width"], attributes["level0_height"])
        if slide.size_px0 != size_px0 or abs(slide.mpp0 / source.mpp0 - 1) > 1e-6:
            raise SlideError(
                f"{source.path}: not the slide that was tiled (its size or mpp changed); run mhim tile again"
            )
    return source


def _chunks(rows: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def _batches(chunks: Iterable[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """The rows of ``chunks`` in order, ``size`` at a time."""
    held: list[NDArray[np.uint8]] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(map(len, held)) >= size:
            rows = np.concatenate(held)
            whole = len(rows) // size * size
            yield from _chunks(rows[:whole], size)
            held = [rows[whole:]]
    if sum(map(len, held)):
        yield np.concatenate(held)
