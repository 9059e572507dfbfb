"""Where the scale of a slide comes from: one chain for every reader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mhim.errors import SlideError

METADATA, RESOLUTION, OBJECTIVE = "metadata", "tiff_resolution", "objective_power"
FILE_SOURCES = (METADATA, RESOLUTION, OBJECTIVE)
"""Sources of a scale that lie in the slide file itself."""

COHORT, FORCED = "cohort", "_forced"
MPP_TOLERANCE = 0.01
CONTRADICTION = 0.1
UM_AT_POWER_1 = 10.0
COARSEST_RESOLUTION_MPP = 40.0


@dataclass(frozen=True)
class FileScale:
    """What a slide file says about its scale; None where it says nothing.

    Attributes:
        metadata: (x, y) micrometres per level-0 pixel that the scanner or OME wrote.
        resolution: (x, y) micrometres per pixel from the TIFF resolution tags.
        objective_power: nominal magnification of the scan.
    """

    metadata: tuple[float, float] | None = None
    resolution: tuple[float, float] | None = None
    objective_power: float | None = None


@dataclass(frozen=True)
class Scale:
    """The scale that is used.

    Attributes:
        mpp: micrometres per level-0 pixel.
        source: "metadata", "tiff_resolution", "objective_power", or what the given value is called.
        note: what a user should know about it, one line; empty: nothing.
    """

    mpp: float
    source: str
    note: str = ""


def check_mpp(mpp: float | None, name: str) -> None:
    """Refuse a given mpp that no slide can have.

    Raises:
        SlideError: not a positive, finite number.
    """
    if mpp is not None and not (mpp > 0 and math.isfinite(mpp)):
        raise SlideError(f"{name}: the given mpp is {mpp:g}, expected a positive number")


def resolve_scale(
    path: Path, found: FileScale, given: float | None = None, given_source: str = "option", force: bool = False
) -> Scale:
    """The scale of a slide.

    The order: a value of the cohort table, the file's metadata, its resolution tags, the value given for the whole
    run, 10 um over the objective power. A value of the table that is more than 10 % from the metadata is refused.
    ``force`` puts given values first whatever the file says; the source then ends in "_forced". Resolution tags that
    name more than 40 um per pixel are those of a printer or a screen and count as none.

    Args:
        path: the file, for messages.
        found: what the file says.
        given: micrometres per pixel that the user gave, or None.
        given_source: "cohort" for a value of this slide's own; anything else is for the whole run. One that is in
            ``FILE_SOURCES`` says that ``given`` was found in the file before; then the file is asked again.
        force: see above; also said by a ``given_source`` that ends in "_forced".

    Raises:
        SlideError: no scale anywhere, ``given`` is not positive or contradicts the metadata, or pixels are not square.
    """
    check_mpp(given, str(path))
    force, given_source = force or given_source.endswith(FORCED), given_source.removesuffix(FORCED)
    own = _own_scale(path, found)
    if given is None or given_source in FILE_SOURCES:
        if own is None:
            raise SlideError(f"{path}: no mpp in its metadata; give --mpp or fill the column 'mpp' of the cohort")
        return own
    if own is None or own.source == OBJECTIVE or abs(given / own.mpp - 1) <= MPP_TOLERANCE:
        is_own = own is not None and own.source != OBJECTIVE and given_source != COHORT
        return own if is_own and own is not None else Scale(float(given), given_source)
    both = f"mpp {given:g} is given, {own.mpp:.4g} is in its {own.source}"
    if force:
        return Scale(float(given), given_source + FORCED, f"{path}: {both}; the given one is used")
    if given_source != COHORT:
        return Scale(own.mpp, own.source, f"{path}: {both}, which is used; --force-scale turns that round")
    if own.source == METADATA and abs(given / own.mpp - 1) > CONTRADICTION:
        raise SlideError(f"{path}: {both}; correct the table, or use --force-scale if the file is wrong")
    return Scale(float(given), given_source, f"{path}: {both}; the given one is used")


def _own_scale(path: Path, found: FileScale) -> Scale | None:
    for source, pair in ((METADATA, found.metadata), (RESOLUTION, found.resolution)):
        if pair is None or not min(pair) > 0 or not math.isfinite(sum(pair)):
            continue
        if source == RESOLUTION and max(pair) > COARSEST_RESOLUTION_MPP:
            continue
        if max(pair) > min(pair) * (1 + MPP_TOLERANCE):
            raise SlideError(
                f"{path}: its pixels are not square (mpp x {pair[0]:g}, y {pair[1]:g}); resample the slide"
            )
        return Scale(sum(pair) / 2, source)
    power = found.objective_power
    if power is not None and power > 0 and math.isfinite(power):
        mpp = UM_AT_POWER_1 / power
        return Scale(mpp, OBJECTIVE, f"{path}: no mpp in the file; {mpp:g} is a guess from objective power {power:g}")
    return None
