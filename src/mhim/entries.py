"""Names of what is compared and measured: an aggregator, trained plainly or by a method."""

from __future__ import annotations

from dataclasses import dataclass

from mhim.errors import ConfigError
from mhim.models import models

PREFIXES = {"mhim-v2-": "mhim-v2", "mhim-": "mhim-v1"}


@dataclass(frozen=True)
class Entry:
    """One row of the table: an aggregator, trained plainly or by a method.

    Attributes:
        name: as the user wrote it, ``transmil`` or ``mhim-transmil``; also its folder.
        model: the aggregator's name.
        method: the method's name.
    """

    name: str
    model: str
    method: str

    @classmethod
    def parse(cls, name: str) -> Entry:
        """An entry by its name: an aggregator, or one behind ``mhim-`` or ``mhim-v2-``.

        Raises:
            ConfigError: no such aggregator.
        """
        for prefix, method in PREFIXES.items():
            if name.startswith(prefix) and name not in models:
                return cls(name, _known(name.removeprefix(prefix), name), method)
        return cls(name, _known(name, name), "supervised")


def _known(model: str, name: str) -> str:
    if model not in models:
        raise ConfigError(f"--models {name}: no such aggregator (known: {', '.join(models)}, and mhim- before each)")
    return model
