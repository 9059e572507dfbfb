"""What a CAMELYON16-like simulation is made of: one frozen, typed configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from mhim.config import Settings

TILE_PX0 = 512
"""Side of a tile at ``tile_scale`` 1, level-0 pixels: 256 pixels at 20x of slides that were scanned at 40x."""


class CamelyonConfig(Settings):
    """Options of ``mhim synth --like camelyon16``: bags of features, a simulation and not CAMELYON16 itself.

    Lengths are in tiles of the lattice that is made, so that they follow ``tile_scale``.
    """

    meta: Path = Field(description="Folder with the slide list, the tumour outlines and their index.")
    pool: Path = Field(description="NPZ file of real patch features: features, label, group.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random.")
    tile_scale: float = Field(
        1.0, gt=0, le=1, description="Tiles per slide, as a share of the real count; below 1 the tiles are larger."
    )
    tiles_mean: float = Field(9000, ge=100, le=50000, description="Mean tiles of a slide at tile_scale 1.")
    tiles_min: int = Field(2000, ge=50, le=50000, description="Fewest tiles of a slide at tile_scale 1.")
    tiles_max: int = Field(20000, ge=50, le=50000, description="Most tiles of a slide at tile_scale 1.")
    components: int = Field(
        0, ge=0, le=4096, description="Principal components of the pool that are kept; 0 keeps its features."
    )
    folds: int = Field(3, ge=2, le=20, description="Parts of the pool's groups; slides of one fold use one part.")
    groups_per_slide: int = Field(12, ge=2, le=10000, description="Groups of the pool that a slide draws from.")
    slide_effect: float = Field(
        0.5, ge=0, le=10, description="Slide shift, in units of the pool's spread between groups."
    )
    slide_gain: float = Field(0.1, ge=0, le=2, description="Spread of the slide's log gain of each feature.")
    site_effect: float = Field(
        0.5, ge=0, le=10, description="Shift between hospitals, in the unit of the slide effect."
    )
    correlation: float = Field(0.8, ge=0, le=1, description="Share of the tiles' variation that is spatially smooth.")
    correlation_tiles: float = Field(3.0, gt=0, le=100, description="Length of the smooth field, in tiles.")
    noise: float = Field(0.2, ge=0, le=10, description="Noise of each tile, in the pool's spread within groups.")
    contrast: float = Field(
        2.0, ge=-1, le=10, description="How much further apart tumour is moved, in differences of the class means."
    )
    subtle_fraction: float = Field(0.4, ge=0, le=1, description="Share of a positive slide's tumour that is subtle.")
    subtle_only_fraction: float = Field(
        0.15, ge=0, le=1, description="Share of positive slides whose tumour is all subtle."
    )
    subtle_pool: float = Field(
        0.5, gt=0, lt=1, description="Share of a group's tumour patches, the least tumour-like, that subtle tiles use."
    )
    subtle_mix: float = Field(0.5, ge=0, lt=1, description="How far a subtle tile is moved to a normal patch.")
    coverage_min: float = Field(
        0.5, gt=0, le=1, description="Tumour share of a tile that makes it a tumour tile; a slide keeps its best tile."
    )
    precision: str = Field("float16", pattern="^float(16|32)$", description="Stored features: float16 or float32.")

    @model_validator(mode="after")
    def _consistent(self) -> CamelyonConfig:
        if not self.tiles_min <= self.tiles_mean <= self.tiles_max:
            raise ValueError(
                f"tiles_min {self.tiles_min}, tiles_mean {self.tiles_mean} and tiles_max {self.tiles_max} do not ascend"
            )
        return self

    @property
    def pitch_px0(self) -> int:
        """Side of a tile and distance of neighbours, level-0 pixels: ``TILE_PX0 / sqrt(tile_scale)``."""
        return round(TILE_PX0 / self.tile_scale**0.5)
