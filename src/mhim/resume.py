"""Going on after an interruption: an output that this configuration and input made is kept."""

from __future__ import annotations

import enum
from pathlib import Path

from mhim.bag import read_attributes
from mhim.errors import ArtefactError, FeatureError


class Standing(enum.Enum):
    """What there is at an output path."""

    ABSENT = "to do"
    SAME = "already complete"
    OTHER = "other"


def standing(path: Path, config_fingerprint: str, input_fingerprint: str) -> tuple[Standing, str]:
    """What there is at ``path``, and in words what differs."""
    if not path.exists():
        return Standing.ABSENT, ""
    try:
        attributes = read_attributes(path)
    except FeatureError:
        return Standing.OTHER, "exists but is not a complete file"
    if attributes.get("config_fingerprint") != config_fingerprint:
        return Standing.OTHER, f"was made by another configuration ({attributes.get('config_fingerprint')})"
    if attributes.get("input_fingerprint") != input_fingerprint:
        return Standing.OTHER, f"was made from another input ({attributes.get('input_fingerprint')})"
    return Standing.SAME, ""


def is_complete(path: Path, config_fingerprint: str, input_fingerprint: str, overwrite: bool) -> bool:
    """Whether the output exists and need not be made again.

    Raises:
        ArtefactError: something else is there, and ``overwrite`` is false.
    """
    found, difference = standing(path, config_fingerprint, input_fingerprint)
    if found is Standing.OTHER and not overwrite:
        raise ArtefactError(f"{path}: {difference}; give another --out, or --overwrite")
    return found is Standing.SAME
