"""Slides in memory for tests of encoding: grids of any number of tiles, slides that fail as wanted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mhim.bag import Bag
from mhim.config import ComponentConfig
from mhim.encode import EncodeConfig
from mhim.encoders import Encoder, encoders
from mhim.errors import SlideError
from mhim.slides.array import ArraySlide
from mhim.tile_io import save_grid
from mhim.tiles import TileGrid
from mhim.tissue import TissueMask

SIDE = 16


class MeanColour(Encoder):
    """Mean colour and one pixel of a tile; remembers how many tiles each call had."""

    class Config(ComponentConfig):
        """No options."""

    dim = 6
    calls: list[int]

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        type(self).calls.append(len(tiles))
        return np.concatenate([tiles.mean(axis=(1, 2)), tiles[:, 3, 5]], axis=1).astype(np.float32)


class Shelf:
    """Slides by name, and what happens when they are read.

    Attributes:
        read_count: tiles that were read.
        failing: for each slide, corners that cannot be read.
        open_now: slides that are open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels: dict[str, NDArray[np.uint8]] = {}
        self.failing: dict[str, set[tuple[int, int]]] = {}
        self.read_count = 0
        self.open_now: set[int] = set()
        self.lock = threading.Lock()
        self.before_read: Any = lambda slide_id: None

    def add(self, slide_id: str, tiles: int, side_px: int = SIDE, seed: int = 0) -> NDArray[np.int64]:
        """A slide of one row of blocks 40 tiles wide, and its grid file; gives the corners."""
        rows = -(-tiles // 40)
        rng = np.random.default_rng([seed, tiles, *slide_id.encode()])
        self.pixels[slide_id] = rng.integers(0, 256, (rows * side_px, 40 * side_px, 3), dtype=np.uint8)
        places = np.arange(tiles)
        xy_px0 = np.stack([places % 40, places // 40], axis=1).astype(np.int64) * side_px
        attributes = {
            "slide_id": slide_id,
            "slide_path": str(self.folder / f"{slide_id}.svs"),
            "mpp": 0.5,
            "slide_mpp": 0.5,
            "slide_mpp_source": "metadata",
            "tile_size_px": side_px,
            "tile_size_level0": float(side_px),
            "level0_width": 40 * side_px,
            "level0_height": rows * side_px,
            "config_fingerprint": "c",
            "input_fingerprint": f"i{seed}",
            "tissue_mask_id": "t",
        }
        tissue = TissueMask(np.ones((1, 1), dtype=bool), (40.0 * side_px, 1.0 * rows * side_px), 8.0)
        (self.folder / "tiles").mkdir(exist_ok=True)
        save_grid(self.folder / "tiles" / f"{slide_id}.h5", TileGrid(slide_id, xy_px0, tissue, attributes))
        return xy_px0

    def expected(self, slide_id: str, xy_px0: NDArray[np.int64], side_px: int = SIDE) -> NDArray[np.float32]:
        """What :class:`MeanColour` says of the tiles, computed straight from the pixels."""
        pixels = self.pixels[slide_id]
        tiles = np.stack([pixels[y : y + side_px, x : x + side_px] for x, y in xy_px0.tolist()])
        return np.concatenate([tiles.mean(axis=(1, 2)), tiles[:, 3, 5]], axis=1).astype(np.float32)

    def open(self, path: Path, slide_id: str, *_: object, **__: object) -> ArraySlide:
        """In place of ``mhim.slides.open_slide``."""
        if slide_id not in self.pixels:
            raise SlideError(f"{path}: no such slide file")
        return ShelfSlide(self, slide_id)


class ShelfSlide(ArraySlide):
    """A slide of a shelf."""

    def __init__(self, shelf: Shelf, slide_id: str) -> None:
        super().__init__(shelf.pixels[slide_id], 0.5, slide_id, "metadata")
        self.shelf = shelf
        shelf.open_now.add(id(self))

    def read_many(self, xy_px0: Any, size_px: int, mpp: float, out: Any, mode: Any = "parity") -> None:
        """Tiles; fails on the corners that are to fail."""
        shelf = self.shelf
        shelf.before_read(self.slide_id)
        bad = shelf.failing.get(self.slide_id, set())
        for x, y in xy_px0.tolist():
            if (x, y) in bad:
                raise SlideError(f"{self.slide_id}: cannot read the region at x {x}, y {y}")
        with shelf.lock:
            shelf.read_count += len(xy_px0)
        for index, (x, y) in enumerate(xy_px0.tolist()):
            out[index] = self.pixels[y : y + size_px, x : x + size_px]

    def close(self) -> None:
        """Noted; closing twice is a fault."""
        self.shelf.open_now.remove(id(self))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """An empty shelf whose slides are opened by their names, and the encoder ``mean-colour``."""
    found = Shelf(tmp_path)
    MeanColour.calls = []
    monkeypatch.setattr("mhim.tile_reader.open_slide", found.open)
    monkeypatch.setitem(encoders._classes, "mean-colour", MeanColour)
    return found


def mean_colour(**changes: Any) -> EncodeConfig:
    """A configuration with the encoder of these tests."""
    values = {"encoder": "mean-colour", "storage": "float32", "batch_size": 64}
    return EncodeConfig.model_validate(values | changes)


def same_bag(found: Bag, features: NDArray[np.float32], xy_px0: NDArray[np.int64]) -> None:
    """The bag holds exactly these rows."""
    np.testing.assert_array_equal(found.xy_px0, xy_px0)
    np.testing.assert_allclose(found.features, features, rtol=1e-6)
