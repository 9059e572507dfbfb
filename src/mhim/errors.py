"""The errors that users see. Each is one line that names the file and the fix.

::

    MhimError
    ├── ConfigError       unknown name or key, value out of range
    ├── CohortError       cohort or splits table: missing case, leak, one class
    ├── SlideError        slide unreadable, without mpp, not bright-field
    ├── FeatureError      bag file: missing, incomplete, empty, NaN, wrong width
    ├── CheckpointError   weights: wrong keys, another fold, another cohort
    └── ArtefactError     existing output of another configuration, partial run
"""

from __future__ import annotations


class MhimError(Exception):
    """Base of every error that the command line turns into one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(MhimError):
    """Raised for an unknown component name or key, or a value out of range."""


class CohortError(MhimError):
    """Raised for a cohort or splits table that cannot be used as it stands."""


class SlideError(MhimError):
    """Raised for a slide that cannot be read at a known scale."""


class FeatureError(MhimError):
    """Raised for a bag file that is missing, incomplete, empty or not finite."""


class CheckpointError(MhimError):
    """Raised for weights that do not fit the model, the fold or the cohort."""


class ArtefactError(MhimError):
    """Raised for an output that exists and was made by something else."""
