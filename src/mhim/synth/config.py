"""What a synthetic cohort is made of: one frozen, typed configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from mhim.config import Settings


class SynthConfig(Settings):
    """Options of ``mhim synth``. Sizes are in micrometres; each scanner renders them at its own scale."""

    n_slides: int = Field(60, ge=2, le=5000, description="Slides in the cohort.")
    n_cases: int = Field(40, ge=2, le=5000, description="Cases; the slides are spread over them evenly.")
    positive_fraction: float = Field(0.5, gt=0, lt=1, description="Share of the cases that have tumour.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random.")
    width_um: float = Field(2000, ge=500, le=4000, description="Slide width [um].")
    height_um: float = Field(2000, ge=500, le=4000, description="Slide height [um].")
    tissue_fraction_min: float = Field(0.32, ge=0.1, le=0.6, description="Least tissue on a slide, as a share of it.")
    tissue_fraction_max: float = Field(0.48, ge=0.1, le=0.6, description="Most tissue on a slide, as a share of it.")
    tumour_fraction_min: float = Field(
        0.005, ge=0.0025, le=0.3, description="Least tumour of a positive slide's tissue."
    )
    tumour_fraction_max: float = Field(0.09, ge=0.0025, le=0.3, description="Most tumour of a positive slide's tissue.")
    focus_um2_min: float = Field(
        4600,
        ge=1000,
        le=40000,
        description="Least area of each kind of tumour that a slide has [um2]; wins over the share.",
    )
    subtle_only_fraction: float = Field(
        0.15, ge=0, le=1, description="Share of positive slides with subtle tumour only."
    )
    mpp_a: float = Field(0.5, ge=0.2, le=2.1, description="Scale of scanner A [um per pixel].")
    mpp_b: float = Field(0.46, ge=0.2, le=2.1, description="Scale of scanner B [um per pixel].")
    jpeg_quality: int = Field(80, ge=30, le=98, description="JPEG quality of the tiles.")

    @model_validator(mode="after")
    def _consistent(self) -> SynthConfig:
        if self.n_slides < self.n_cases:
            raise ValueError(f"n_slides {self.n_slides} is less than n_cases {self.n_cases}; each case needs a slide")
        for quantity in ("tissue", "tumour"):
            low, high = (getattr(self, f"{quantity}_fraction_{end}") for end in ("min", "max"))
            if low > high:
                raise ValueError(f"{quantity}_fraction_min {low} is above {quantity}_fraction_max {high}")
        return self
