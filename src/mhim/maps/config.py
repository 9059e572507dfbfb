"""Options of the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mhim.config import Settings, fingerprint

MapKind = Literal["attention", "attention-score", "probability", "contribution"]
KINDS: tuple[MapKind, ...] = ("attention", "probability", "contribution")
"""The three maps that are drawn and scored where nothing else is asked for."""

ALL_KINDS: tuple[MapKind, ...] = ("attention", "attention-score", "probability", "contribution")
PLACES = {"cohort", "features", "max_slides", "fold"}


class MapConfig(Settings):
    """Which maps are drawn, of which slides, and how."""

    maps: tuple[MapKind, ...] = Field(KINDS, description="maps to draw; a map that a model does not have is left out")
    max_slides: int | None = Field(
        24, ge=1, description="slides drawn when none are named: the wrong, least and most certain ones; null draws all"
    )
    max_side_px: int = Field(768, ge=128, description="longer side of the slide in a picture, pixels")
    opacity: float = Field(0.85, gt=0, le=1, description="opacity of the highest value")
    least_opacity: float = Field(0.12, ge=0, le=1, description="opacity of the lowest value")
    smooth: bool = Field(False, description="interpolate colours between tile centres; tables keep raw values")
    cohort: Path | None = Field(None, description="cohort table with slides and annotations; default: the run's")
    features: Path | None = Field(None, description="folder of bag files; default: the run's")
    fold: int | None = Field(None, ge=0, description="draw slides that the run does not know, by this fold's model")

    @field_validator("maps")
    @classmethod
    def _some(cls, maps: tuple[MapKind, ...]) -> tuple[MapKind, ...]:
        if not maps:
            raise ValueError(f"name at least one of {', '.join(ALL_KINDS)}")
        return tuple(kind for kind in ALL_KINDS if kind in maps)

    @property
    def look(self) -> str:
        """Fingerprint of what decides the pictures; where files lie and how many slides does not."""
        unused = set() if self.smooth else {"smooth"}  # so that blocky maps of earlier versions stay current
        return fingerprint(self.model_dump(mode="json", exclude=PLACES | unused))
