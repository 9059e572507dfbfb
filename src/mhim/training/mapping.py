"""Features mapped from their files: pages of the system's own cache, read when touched, shared by all processes."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mhim.bag import place_of_features

SLICE_BYTES = 128 << 10
"""Asked for in one call: Linux reads no further than its read-ahead, and ignores the rest."""
DTYPES: dict[type[Any], torch.dtype] = {np.float16: torch.float16, np.float32: torch.float32, np.float64: torch.float64}


def map_features(path: Path) -> Float[Tensor, "instances in_dim"] | None:
    """Features (N, D) of a bag file, in place, as stored; None where the file or the system cannot be mapped.

    The pages are private: what is written to the tensor never reaches the file. A file that is replaced by renaming,
    as every verb does, leaves the tensor as it is.

    Raises:
        FeatureError: the file cannot be used; its numbers are not looked at.
    """
    place = place_of_features(path)
    if place is None or place.dtype.type not in DTYPES:
        return None
    end = place.offset + place.nbytes
    try:
        octets = torch.from_file(str(path), shared=False, size=end, dtype=torch.uint8)
    except RuntimeError:  # a file system without mapping
        return None
    return octets[place.offset :].view(DTYPES[place.dtype.type]).reshape(place.shape)


class ReadAhead:
    """Asks the system, from a thread of its own, to read files that are needed soon; it may do so or not."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def ask(self, path: Path) -> None:
        """Return at once; the file is read into the page cache meanwhile."""
        if not hasattr(os, "posix_fadvise"):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._thread.submit(_will_need, path)

    def wait(self) -> None:
        """Until everything has been asked for."""
        if self._thread is not None:
            self._thread.submit(int).result()


def _will_need(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        for start in range(0, os.fstat(file.fileno()).st_size, SLICE_BYTES):
            os.posix_fadvise(file.fileno(), start, SLICE_BYTES, os.POSIX_FADV_WILLNEED)
