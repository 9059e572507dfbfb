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

STORE_BYTES = 128 << 20
WHITE = 255

Pixels = NDArray[np.uint8]
Key = tuple[int, int, int, int]
"""Level, reduction, row and column of a stored tile."""


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


def gather(
    corners: list[tuple[int, int]],
    size_px: tuple[int, int],
    lattice: Lattice,
    decode: Callable[[Key, Pixels | None], Pixels],
    store: SeamStore,
    place: Callable[[int], Pixels],
    finish: Callable[[int, Pixels], None],
) -> None:
    """Fill regions of one size from stored tiles.

    Args:
        corners: (x, y) of each region on the lattice; fastest in raster order.
        size_px: (width, height) of every region.
        lattice: how stored tiles lie.
        decode: a stored tile's pixels (tile height, tile width, 3) uint8, decoded into the given array, or, where it
            is None, into a new one.
        store: where seams are kept between calls.
        place: the array (h, w, 3) uint8 to fill for region ``i``; asked for in order, it may be the same one again.
        finish: called with each region when it is whole.
    """
    width, height = size_px
    tile_w, tile_h = lattice.tile_px
    touched = [_touched(corner, size_px, lattice) for corner in corners]
    left_px: dict[Key, int] = {}
    uses: dict[Key, int] = {}
    for parts in touched:
        for key, _, _, area_px, stored_px in parts:
            uses[key] = uses.get(key, 0) + 1
            left_px[key] = left_px.get(key, stored_px) - area_px
    scratch = np.empty((tile_h, tile_w, 3), np.uint8)
    live: dict[Key, Pixels] = {}
    row_span = height // tile_h + 2
    for index, parts in enumerate(touched):
        out = place(index)
        if sum(part[3] for part in parts) < width * height:
            out[...] = WHITE
        for key, of, to, area_px, stored_px in parts:
            uses[key] -= 1
            pixels = live.get(key)
            if pixels is None:
                pixels = store.take(key, stored_px - left_px[key])
            if pixels is None:
                if left_px[key] > 0:
                    pixels = decode(key, None)
                    store.keep(key, pixels, left_px[key], row_span)
                elif uses[key]:
                    pixels = decode(key, None)
                elif area_px == tile_w * tile_h == width * height:
                    decode(key, out)
                    continue
                else:
                    pixels = decode(key, scratch)
            out[to] = pixels[of]
            if uses[key]:
                live[key] = pixels
            else:
                live.pop(key, None)
        finish(index, out)


def scatter(
    corners: list[tuple[int, int]],
    outs: list[Pixels],
    lattice: Lattice,
    decode: Callable[[Key, Pixels | None], Pixels],
    store: SeamStore,
) -> None:
    """Fill regions that need no resampling: each stored tile goes to all of them while it is still in the cache.

    Args:
        corners: (x, y) of each region on the lattice.
        outs: the arrays (h, w, 3) uint8 to fill, all of one size.
        lattice: see ``gather``.
        decode: see ``gather``.
        store: see ``gather``.
    """
    height, width = outs[0].shape[:2]
    tile_w, tile_h = lattice.tile_px
    users: dict[Key, list[tuple[Pixels, _Slices, _Slices]]] = {}
    left_px: dict[Key, int] = {}
    for corner, out in zip(corners, outs, strict=True):
        parts = _touched(corner, (width, height), lattice)
        if sum(part[3] for part in parts) < width * height:
            out[...] = WHITE
        for key, of, to, area_px, stored_px in parts:
            users.setdefault(key, []).append((out, of, to))
            left_px[key] = left_px.get(key, stored_px) - area_px
    is_tile = (height, width) == (tile_h, tile_w)
    scratch = np.empty((tile_h, tile_w, 3), np.uint8)
    row_span = height // tile_h + 2
    for key in sorted(users):
        left, pieces, stored_px = left_px[key], users[key], _stored_px(key, lattice)
        if left <= 0 and len(pieces) == 1 and is_tile and stored_px == tile_w * tile_h:
            decode(key, pieces[0][0])
            continue
        pixels = store.take(key, stored_px - left)
        if pixels is None:
            pixels = decode(key, None if left > 0 else scratch)
            if left > 0:
                store.keep(key, pixels, left, row_span)
        for out, of, to in pieces:
            out[to] = pixels[of]


def _stored_px(key: Key, lattice: Lattice) -> int:
    """Pixels of a stored tile inside the level."""
    (width, height), (tile_w, tile_h) = lattice.size_px, lattice.tile_px
    return min(tile_w, width - key[3] * tile_w) * min(tile_h, height - key[2] * tile_h)


_Slices = tuple[slice, slice]
_Part = tuple[Key, _Slices, _Slices, int, int]
"""The piece of a stored tile that a region shows: which tile, where in it, where in the region, pixels of the piece,
pixels of the tile inside the level."""


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
