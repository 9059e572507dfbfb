"""Synthetic whole-slide images with exact tumour masks."""

from mhim.synth.cohort import make_cohort, missing
from mhim.synth.config import SynthConfig

__all__ = ["SynthConfig", "make_cohort", "missing"]
