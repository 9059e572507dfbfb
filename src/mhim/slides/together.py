"""Slides of one cohort beside each other: whether their scales and readers go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mhim.errors import ConfigError, SlideError
from mhim.slides.scale import FORCED, OBJECTIVE, check_mpp

SHOWN = 5


def check_given_mpp(mpp: float | None) -> None:
    """Refuse an mpp for the whole run that no slide can have, before any slide is opened.

    Raises:
        ConfigError: not a positive, finite number.
    """
    try:
        check_mpp(mpp, "--mpp")
    except SlideError:
        raise ConfigError(f"--mpp {mpp:g}: not a scale; give micrometres per pixel, a positive number") from None


def scale_source(path: Path, mpp0: float | None, mpp0_source: str) -> str | None:
    """Where the scale of a slide would come from, by its header alone; None where it cannot be told."""
    from mhim.slides.choose import header_scale

    try:
        return header_scale(path, mpp0, mpp0_source).source
    except (SlideError, OSError):
        return None


def mixes_guesses(sources: Iterable[str | None]) -> bool:
    """Whether some scales are guessed from the objective power and others are not."""
    known = {source == OBJECTIVE for source in sources if source is not None}
    return len(known) > 1


def refuse_guess(mpp0: float, mpp0_source: str, name: str) -> None:
    """Refuse a guessed scale among known ones.

    Raises:
        SlideError: the scale comes from the objective power.
    """
    if mpp0_source == OBJECTIVE:
        raise SlideError(
            f"{name}: its scale ({mpp0:g}) is a guess from the objective power, other slides state theirs; "
            f"fill the column 'mpp' of the cohort, or accept the guess with --force-scale"
        )


def reading_notes(slides: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines about how the slides of a cohort were read: mixed readers, guessed and overridden scales, fall-backs.

    Args:
        slides: attributes of their grid or bag files.
    """
    slides = list(slides)
    lines = []
    readers = Counter(str(slide.get("reader", "unknown")) for slide in slides)
    if len(readers) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in readers.most_common())
        lines.append(f"warning: slides are read by different readers, whose pixels may differ ({counts}); see --reader")
    sources = Counter(str(slide.get("slide_mpp_source", "unknown")) for slide in slides)
    doubtful = [source for source in sources if source == OBJECTIVE or source.endswith(FORCED)]
    if doubtful:
        counts = ", ".join(f"{name}: {count}" for name, count in sources.most_common())
        lines.append(f"warning: the scale of some slides is guessed or forced (slide_mpp_source {counts})")
    notes = [note for slide in slides for note in str(slide.get("notes", "")).splitlines() if note]
    lines += [f"note: {note}" for note in notes[:SHOWN]]
    if len(notes) > SHOWN:
        lines.append(f"note: {len(notes) - SHOWN} more such lines, in the attribute 'notes' of the grid files")
    return lines
