"""Keep freed memory in the process instead of handing every large block back to the kernel."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_heap(largest: int = 1 << 30, trim: int = 1 << 28) -> bool:
    """Ask glibc to serve blocks up to ``largest`` bytes from its heap, and to keep ``trim`` bytes of it when free.

    By default every block above 32 MiB is mapped and unmapped anew, and each of its pages faulted in again:
    a tenth to a fifth of a TransMIL step. Changes nothing but speed and resident memory.

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
    return bool(mallopt(_M_MMAP_THRESHOLD, largest)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))
