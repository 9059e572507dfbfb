"""Options of ``mhim export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mhim.config import Settings, fingerprint
from mhim.maps import MapKind

Format = Literal["geojson", "ome-tiff", "csv", "parquet", "anndata"]
FORMATS: tuple[Format, ...] = ("geojson", "ome-tiff", "csv", "parquet", "anndata")
DEFAULT_FORMATS: tuple[Format, ...] = ("geojson", "ome-tiff", "csv")
Origin = Literal["auto", "level0", "bounds"]
PLACES = {"cohort", "features", "fold"}


class ExportConfig(Settings):
    """Which files are written, of what, and where their origin lies."""

    formats: tuple[Format, ...] = Field(DEFAULT_FORMATS, description="geojson, ome-tiff, csv, parquet, anndata")
    origin: Origin = Field(
        "auto",
        description="origin of GeoJSON and OME-TIFF: auto takes the corner of the scanned area where the slide file "
        "records one (MRXS, SCN), as QuPath shows it; level0 never does; bounds fails where there is none",
    )
    region_map: MapKind = Field("probability", description="map whose high tiles are merged into regions (GeoJSON)")
    region_share: float = Field(
        0.05, ge=0, lt=1, description="share of the tiles, the highest ones, that are merged into regions; 0 for none"
    )
    region_threshold: float | None = Field(None, description="tiles at or above this raw value instead of a share")
    max_side_px: int = Field(4096, ge=256, le=32768, description="longer side of the OME-TIFF at most, pixels")
    with_features: bool = Field(False, description="AnnData: the tiles' features as X; without, X is left out")
    cohort: Path | None = Field(None, description="cohort table with slides; default: the run's")
    features: Path | None = Field(None, description="folder of bag files; default: the run's")
    fold: int | None = Field(None, ge=0, description="export slides that the run does not know, by this fold's model")

    @field_validator("formats")
    @classmethod
    def _some(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if not formats:
            raise ValueError(f"name at least one of {', '.join(FORMATS)}")
        return tuple(name for name in FORMATS if name in formats)

    @model_validator(mode="after")
    def _finite(self) -> ExportConfig:
        if self.region_threshold is not None and not abs(self.region_threshold) < float("inf"):
            raise ValueError("region_threshold is not a finite number")
        return self

    @property
    def content(self) -> str:
        """Fingerprint of what decides the files; where inputs lie does not."""
        return fingerprint(self.model_dump(mode="json", exclude=PLACES))
