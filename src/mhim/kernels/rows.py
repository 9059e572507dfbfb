"""A bag's features by chunks: chosen rows, in the dtype that is computed in, without a copy of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from mhim.kernels.gemm import FEWEST_ROWS

_CHUNK = {"cpu": 1024}
_CHUNK_STREAMED = {"cpu": 256}
_CHUNK_ACCELERATOR = 65536


def chunk_rows(device: torch.device) -> int:
    """Rows of one chunk: what stays in a CPU's cache, or fills an accelerator."""
    return _CHUNK.get(device.type, _CHUNK_ACCELERATOR)


@cache
def has_bfloat16_products() -> bool:
    """Whether this processor is known to multiply matrices in bfloat16, which is then faster than in float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class Rows:
    """Some rows of (N, D) features.

    Args:
        features: (N, D), of any floating dtype; on the CPU or on the device that computes.
        index: (K,) int64 the rows that count, in their order, or a range of them; all by default.
        device: where chunks are computed.
        dtype: what chunks are computed in.
    """

    def __init__(
        self, features: Tensor, index: Tensor | range | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.features, self.index, self.device, self.dtype = features, index, device, dtype
        self.count = len(features) if index is None else len(index)
        self.chunk = chunk_rows(device)
        self.least = FEWEST_ROWS if device.type == "cpu" and dtype == torch.float32 else self.chunk

    def __len__(self) -> int:
        return self.count

    @property
    def makes_copies(self) -> bool:
        """Whether a chunk is gathered or converted, not a view."""
        is_same = self.features.dtype == self.dtype and self.features.device == self.device
        return self.index is not None or not is_same

    def parts(self) -> Iterator[slice]:
        """The chunks' places among the rows.

        What a long bag leaves over in float32 on a CPU is cut into quarters and sixteenths of a chunk and a rest: bags
        of all lengths then meet libraries with the same few shapes, which these remember. In lower precision small
        products cost more than that saves.
        """
        start, size = 0, self.chunk
        while start < self.count:
            while size > self.count - start and size // 4 >= self.least and start:
                size //= 4
            stop = min(start + size, self.count)
            yield slice(start, stop)
            start = stop

    def part(self, place: slice) -> Tensor:
        """The rows of a chunk, (n, D) in the computing dtype; a view where nothing has to be changed."""
        rows = self.features[place] if self.index is None else self.features.index_select(0, self._numbers(place))
        return rows.to(device=self.device, dtype=self.dtype)

    def _numbers(self, place: slice) -> Tensor:
        """Which rows of the features a chunk consists of."""
        assert self.index is not None
        chosen = self.index[place]
        if isinstance(chosen, Tensor):
            return chosen
        return torch.arange(chosen.start, chosen.stop, chosen.step, device=self.features.device)

    def at(self, positions: Tensor) -> Tensor:
        """Some of the rows, (P, D) in the computing dtype; (P,) int64 on the features' device."""
        index = self._of(positions)
        return self.features.index_select(0, index).to(device=self.device, dtype=self.dtype)

    def subset(self, positions: Tensor) -> Rows:
        """Some of the rows as rows of their own; (P,) int64 on the features' device."""
        return Rows(self.features, self._of(positions), self.device, self.dtype)

    def streamed(self) -> Rows:
        """The same rows in chunks for a result of which none is kept: a quarter of the memory, no slower."""
        rows = Rows(self.features, self.index, self.device, self.dtype)
        rows.chunk = _CHUNK_STREAMED.get(self.device.type, self.chunk)
        return rows

    def coarse(self) -> Rows | None:
        """The same rows in bfloat16, where a pass over them in float32 takes longer; None elsewhere."""
        is_slower = self.dtype == torch.float32 and self.device.type == "cpu" and has_bfloat16_products()
        return Rows(self.features, self.index, self.device, torch.bfloat16) if is_slower else None

    def _of(self, positions: Tensor) -> Tensor:
        if self.index is None:
            return positions
        if isinstance(self.index, range):
            return positions * self.index.step + self.index.start
        return self.index[positions]

    def every(self, places: slice) -> Rows:
        """The rows from a start to a stop by a step, of which no list is made unless there is one."""
        index = range(len(self.features))[places] if self.index is None else self.index[places]
        return Rows(self.features, index, self.device, self.dtype)
