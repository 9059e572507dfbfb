"""Tiles from stored tiles: each stored tile is decoded once, and copied to every wanted tile that it touches.

A call knows all the tiles that it is asked for, so a decoded tile is kept exactly until the last of them has it.
What a call leaves partly unused (the seam to the next row) goes to a small store that later calls find.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STORE_BYTES = 48 << 20
WHITE = 255

Pixels = NDArray[np.uint8]
Key = tuple[int, int, int, int]
"""Level, reduction, row and column of a stored tile."""


_Slices = tuple[slice, slice]
_Part = tuple[Key, _Slices, _Slices, int, int]
"""The piece of a stored tile that a region shows: which tile, where in it, where in the region, pixels of the piece,
pixels of the tile inside the level."""


@dataclass(frozen=True)
class Lattice:
    """A level as its stored tiles lie, at the size at which they are decoded.

    Attributes:
        level, reduction: which level, decoded at 1 / reduction of its size.
        size_px: (width, height) of the level so decoded.
        tile_px: (width, height) of a tile so decoded.
    """

    level: int
    reduction: int
    size_px: tuple[int, int]
    tile_px: tuple[int, int]


@dataclass
class _Kept:
    pixels: Pixels
    left_px: int


class SeamStore:
    """Decoded tiles that are not used up, at most ``capacity`` bytes; safe in several threads.

    When it is full, rows that the sweep has passed are dropped; if none are, nothing more is taken in, so that a row
    too long to be kept whole is kept in part.
    """

    def __init__(self, capacity: int = STORE_BYTES) -> None:
        self.capacity = capacity
        self.held = 0
        self._kept: dict[Key, _Kept] = {}
        self._lock = threading.Lock()

    def take(self, key: Key, used_px: int) -> Pixels | None:
        """A tile that is there, of which the caller will use ``used_px`` pixels."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.left_px -= used_px
            if kept.left_px <= 0:
                self.held -= self._kept.pop(key).pixels.nbytes
            return kept.pixels

    def keep(self, key: Key, pixels: Pixels, left_px: int, row_span: int) -> None:
        """Take in a tile of which ``left_px`` pixels are still unused; ``row_span`` rows of tiles are live."""
        with self._lock:
            if key in self._kept:
                return
            if self.held + pixels.nbytes > self.capacity:
                self._drop_passed(key, row_span)
            if self.held + pixels.nbytes <= self.capacity:
                self._kept[key] = _Kept(pixels, left_px)
                self.held += pixels.nbytes

    def _drop_passed(self, key: Key, row_span: int) -> None:
        passed = [other for other in self._kept if other[:2] != key[:2] or abs(other[2] - key[2]) > row_span]
        for other in passed:
            self.held -= self._kept.pop(other).pixels.nbytes


class Supply:
    """Regions of one size from the stored tiles of one level.

    Args:
        corners: (x, y) of each region on the lattice; fastest in raster order.
        size_px: (width, height) of every region.
        lattice: how stored tiles lie.
        decode: a stored tile's pixels (tile height, tile width, 3) uint8, decoded into the given array, or, where it
            is None, into a new one.
        store: where seams are kept between calls.
    """

    def __init__(
        self,
        corners: list[tuple[int, int]],
        size_px: tuple[int, int],
        lattice: Lattice,
        decode: Callable[[Key, Pixels | None], Pixels],
        store: SeamStore,
    ) -> None:
        self.size_px, self.lattice, self.decode, self.store = size_px, lattice, decode, store
        self.touched = [_touched(corner, size_px, lattice) for corner in corners]
        self.left_px: dict[Key, int] = {}
        self.uses: dict[Key, int] = {}
        for parts in self.touched:
            for key, _, _, area_px, stored_px in parts:
                self.uses[key] = self.uses.get(key, 0) + 1
                self.left_px[key] = self.left_px.get(key, stored_px) - area_px
        self._scratch = np.empty((lattice.tile_px[1], lattice.tile_px[0], 3), np.uint8)
        self._row_span = size_px[1] // lattice.tile_px[1] + 2

    def gather(self, place: Callable[[int], Pixels], finish: Callable[[int, Pixels], None]) -> None:
        """Fill one region after the other.

        Args:
            place: the array (h, w, 3) uint8 for region ``i``; it may be the same one again.
            finish: called with each region when it is whole.
        """
        live: dict[Key, Pixels] = {}
        for index, parts in enumerate(self.touched):
            out = place(index)
            self._whiten(out, parts)
            for key, of, to, _, stored_px in parts:
                self.uses[key] -= 1
                pixels = live.pop(key, None)
                if pixels is None:
                    pixels = self._fetch(key, stored_px, is_last=not self.uses[key])
                out[to] = pixels[of]
                if self.uses[key]:
                    live[key] = pixels
            finish(index, out)

    def scatter(self, outs: list[Pixels]) -> None:
        """Fill ``outs`` (h, w, 3) uint8; a stored tile goes to all its regions while it is in the cache."""
        users: dict[Key, list[tuple[Pixels, _Slices, _Slices, int]]] = {}
        for out, parts in zip(outs, self.touched, strict=True):
            self._whiten(out, parts)
            for key, of, to, _, stored_px in parts:
                users.setdefault(key, []).append((out, of, to, stored_px))
        tile_px = self.lattice.tile_px
        for key in sorted(users):
            pieces = users[key]
            out, _, _, stored_px = pieces[0]
            is_alone = len(pieces) == 1 and self.left_px[key] <= 0
            if is_alone and self.size_px == tile_px and stored_px == tile_px[0] * tile_px[1]:
                self.decode(key, out)
                continue
            pixels = self._fetch(key, stored_px, is_last=True)
            for out, of, to, _ in pieces:
                out[to] = pixels[of]

    def _fetch(self, key: Key, stored_px: int, is_last: bool) -> Pixels:
        """A stored tile, from the store or decoded; the next one may overwrite it where nobody else needs it."""
        left_px = self.left_px[key]
        pixels = self.store.take(key, stored_px - left_px)
        if pixels is None:
            pixels = self.decode(key, self._scratch if is_last and left_px <= 0 else None)
            if left_px > 0:
                self.store.keep(key, pixels, left_px, self._row_span)
        return pixels

    def _whiten(self, out: Pixels, parts: list[_Part]) -> None:
        """White where a region lies outside the level."""
        if sum(part[3] for part in parts) < self.size_px[0] * self.size_px[1]:
            out[...] = WHITE


def _touched(corner: tuple[int, int], size_px: tuple[int, int], lattice: Lattice) -> list[_Part]:
    """The pieces of stored tiles under a region, inside the level."""
    columns = _overlaps(corner[0], size_px[0], lattice.size_px[0], lattice.tile_px[0])
    rows = _overlaps(corner[1], size_px[1], lattice.size_px[1], lattice.tile_px[1])
    level, reduction = lattice.level, lattice.reduction
    return [
        ((level, reduction, row, column), (of_y, of_x), (to_y, to_x), h * w, stored_h * stored_w)
        for row, of_y, to_y, h, stored_h in rows
        for column, of_x, to_x, w, stored_w in columns
    ]


def _overlaps(corner: int, size: int, length: int, tile: int) -> list[tuple[int, slice, slice, int, int]]:
    """Along one axis: tile number, where in the tile, where in the region, and how long piece and stored tile are."""
    first, last = max(corner, 0), min(corner + size, length)
    found = []
    for number in range(first // tile, -(-last // tile) if last > first else 0):
        start = number * tile
        begin, end = max(first, start), min(last, start + tile)
        inside, place = slice(begin - start, end - start), slice(begin - corner, end - corner)
        found.append((number, inside, place, end - begin, min(length, start + tile) - start))
    return found
