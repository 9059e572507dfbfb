"""Published configurations as files, and changes to lay over them: ``iccv2023/transmil-camelyon16``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mhim.config import Settings, merge, read_yaml, validate
from mhim.errors import ConfigError

FOLDER = Path(__file__).parent


class PresetFile(Settings):
    """What a preset file holds."""

    title: str = Field(description="one line")
    source: str = Field(description="where the values were published")
    notes: str = Field("", description="what is not published, or was published in two ways")
    is_change: bool = Field(False, description="holds only what differs; lay it over another preset")
    seeds: tuple[int, ...] = Field((), description="seeds of the published runs")
    config: dict[str, Any] = Field(description="keys of a run's configuration")


@dataclass(frozen=True)
class Preset:
    """A preset file with its name."""

    name: str
    file: PresetFile

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / f"{self.name}.yaml"


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def read_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ConfigError: no such preset; lists the known ones.
    """
    if name not in preset_names():
        raise ConfigError(f"unknown preset '{name}' (known: {', '.join(preset_names())})")
    path = FOLDER / f"{name}.yaml"
    return Preset(name, validate(PresetFile, read_yaml(path), str(path)))


def presets() -> Iterator[Preset]:
    """All presets, sorted by name."""
    return map(read_preset, preset_names())


def preset_values(names: list[str]) -> dict[str, Any]:
    """Configuration keys of some presets, later ones over earlier ones.

    Raises:
        ConfigError: an unknown name.
    """
    return merge(*(read_preset(name).file.config for name in names))
