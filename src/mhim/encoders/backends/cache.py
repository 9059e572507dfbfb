"""The user's cache of converted graphs and measured deviations, by content.

An entry is made in a temporary folder and renamed: another process sees a whole entry or none.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mhim.config import fingerprint
from mhim.errors import ArtefactError

VARIABLE = "MHIM_CACHE"


def cache_folder() -> Path:
    """``$MHIM_CACHE``, else ``mhim`` in the system's folder for caches."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mhim" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mhim"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mhim"


def cached(kind: str, key: object, make: Callable[[Path], None], folder: Path | None = None) -> Path:
    """The entry for ``key``, made by ``make`` when it is not there.

    Args:
        kind: folder of the cache.
        key: JSON-like value that decides the content.
        make: fills a new, empty folder.
        folder: the cache; by default :func:`cache_folder`.

    Returns:
        The entry's folder; not to be written to.

    Raises:
        ArtefactError: the cache cannot be written.
    """
    entry = (folder or cache_folder()) / kind / fingerprint(key)
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    except OSError as error:
        raise ArtefactError(
            f"{entry.parent}: cannot be written ({error.strerror}); name another folder in {VARIABLE}"
        ) from None
    try:
        make(made)
        made.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return entry


@lru_cache
def processor() -> str:
    """What decides arithmetic on this machine: its architecture and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return fingerprint([platform.machine(), sorted(flags.split())])
