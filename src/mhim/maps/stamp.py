"""The stamp of a slide's folder: what its files were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mhim.artefacts import read_json
from mhim.errors import ArtefactError


def is_current(folder: Path, stamp: str, identity: Mapping[str, str], what: str, overwrite: bool) -> bool:
    """Whether a folder holds the files of this very configuration and input, all of them.

    Args:
        folder: of one slide.
        stamp: name of the JSON file that says what was made, with its ``files``; it is written last.
        identity: fingerprints of configuration and input that the stamp must have.
        what: what the files are, in messages.
        overwrite: replace whatever is there.

    Raises:
        ArtefactError: the folder holds files of another configuration or input.
    """
    if overwrite or not (folder / stamp).is_file():
        return False
    found = read_json(folder / stamp)
    for key, value in identity.items():
        if found.get(key) != value:
            other = "configuration" if key.startswith("config") else "set of runs, bag, slide or annotation"
            raise ArtefactError(f"{folder}: {what} of another {other} are here; give another --out, or --overwrite")
    return all((folder / name).is_file() for name in found["files"])
