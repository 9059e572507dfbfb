"""Memory of the process: keep freed blocks instead of handing them back, and bound what libraries remember."""

from __future__ import annotations

import ctypes
import os
import sys

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_kept: list[int] = []


def keep_heap(largest: int = 1 << 30, trim: int = 1 << 28) -> bool:
    """Ask glibc to serve blocks up to ``largest`` bytes from its heap, and to keep ``trim`` bytes of it when free.

    By default every block above 32 MiB is mapped and unmapped anew, and each of its pages faulted in again: a tenth
    to a quarter of a TransMIL step. Changes nothing but speed and resident memory.

    Returns:
        Whether the C library took it; False on anything but glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    _kept.append(largest)
    return bool(mallopt(_M_MMAP_THRESHOLD, largest)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))


def keep_pages() -> bool:
    """The same for work on pictures: blocks up to 64 MiB come from the heap, and 64 MiB of it stay when free.

    A picture of a megabyte is otherwise mapped anew for every step of the work, and to fault in its pages costs more
    than to compute them. What training has asked for stays.
    """
    return True if _kept else keep_heap(1 << 26, 1 << 26)


def bound_caches(entries: int = 24) -> None:
    """Let oneDNN, and PyTorch's layer over it, remember ``entries`` shapes each instead of 1024.

    Both keep compiled code and work space for every shape of a product that they have met, and bags have all sizes.
    What they keep lies between the blocks of the bags, which then cannot be used again for others. Models that go by
    chunks have about twenty shapes (``mhim.kernels.rows``); TransMIL has new ones with every bag. They read the
    environment at their first product, so this is for the start of a program; what the user has set stays.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(entries))


def prepare_memory() -> None:
    """Both; for the start of a training."""
    bound_caches()
    keep_heap()
