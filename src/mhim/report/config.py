"""Options of the report."""

from __future__ import annotations

from pydantic import Field

from mhim.config import Settings


class ReportConfig(Settings):
    """What a report says about itself and how much it shows; equal input gives equal bytes."""

    title: str | None = Field(None, description="heading; default: the classes")
    date: str | None = Field(None, description="date to print; none by default, so that equal input gives equal bytes")
    slides: int = Field(12, ge=0, description="slides whose maps are shown; 0 shows none")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples over cases")
    picture_px: int = Field(420, ge=64, description="width of a map at most, pixels")
    picture_quality: int = Field(72, ge=1, le=100, description="WebP quality of pictures")
    tiles: int = Field(6, ge=0, le=24, description="tiles shown of each of them by each of two maps; 0 for none")
    tile_px: int = Field(112, ge=32, le=512, description="width of a tile at most, pixels")
    max_bytes: int = Field(4_500_000, ge=100_000, description="bytes of pictures; slides beyond it are left out")
