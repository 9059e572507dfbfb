"""Which slides are to be encoded, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mhim.bag import read_attributes
from mhim.batch import BatchResult, Outcome, describe_failure
from mhim.config import fingerprint
from mhim.errors import ArtefactError, ConfigError


@dataclass(frozen=True)
class EncodeJob:
    """One grid to encode."""

    grid_path: Path
    out: Path
    overwrite: bool = False

    @property
    def slide_id(self) -> str:
        """The slide's name, as the grid file is called."""
        return self.grid_path.stem

    @property
    def path(self) -> Path:
        """The bag file."""
        return self.out / f"{self.slide_id}.h5"

    def input_fingerprint(self) -> str:
        """Identity of the grid: what it was made from and how.

        Raises:
            FeatureError: the grid is missing or not complete.
        """
        attributes = read_attributes(self.grid_path)
        return fingerprint(
            [attributes.get(key) for key in ("config_fingerprint", "input_fingerprint", "tissue_mask_id")]
        )


@dataclass(frozen=True)
class SlideEnd:
    """What became of one slide.

    Attributes:
        slide_id: its name.
        outcome: done or skipped, or None when it failed.
        reason: why it failed, one line.
        reader: what read it, with its version.
        failed_count, tile_count: tiles that could not be read, of all.
        notes: what to know about how it was read, a line each.
    """

    slide_id: str
    outcome: Outcome | None
    reason: str = ""
    reader: str = ""
    failed_count: int = 0
    tile_count: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def failure(cls, slide_id: str, error: BaseException) -> SlideEnd:
        """The end of a slide that failed."""
        return cls(slide_id, None, describe_failure(error))


@dataclass
class EncodeResult(BatchResult):
    """What was done, skipped and failed, and what to know about it.

    Attributes:
        ends: one entry a slide.
    """

    ends: list[SlideEnd] = field(default_factory=list)

    def add(self, end: SlideEnd) -> None:
        """Count a slide."""
        self.ends.append(end)
        if end.outcome is None:
            self.failed[end.slide_id] = end.reason
        else:
            (self.done if end.outcome is Outcome.DONE else self.skipped).append(end.slide_id)

    def sort(self, order: Sequence[str]) -> None:
        """Bring the slides into the order in which they were asked for."""
        place = {slide_id: index for index, slide_id in enumerate(order)}
        self.ends.sort(key=lambda end: place[end.slide_id])
        self.done.sort(key=place.__getitem__)
        self.skipped.sort(key=place.__getitem__)
        self.failed = {slide_id: self.failed[slide_id] for slide_id in order if slide_id in self.failed}

    def notes(self) -> list[str]:
        """Lines about slides that are complete but not as they should be."""
        lines = [note for end in self.ends for note in end.notes]
        lines += [
            f"{end.slide_id}: {end.failed_count} of {end.tile_count} tiles could not be read and are left out, "
            "see mhim info"
            for end in self.ends
            if end.failed_count
        ]
        readers = Counter(end.reader for end in self.ends if end.reader)
        if len(readers) > 1:
            counts = ", ".join(f"{name}: {count}" for name, count in readers.most_common())
            lines.append(f"warning: slides were read by different readers, whose pixels may differ ({counts})")
        return lines


def encode_jobs(
    tiles: Path, out: Path, overwrite: bool = False, shard: tuple[int, int] | None = None
) -> list[EncodeJob]:
    """The work on a folder of grid files, by name, or on one grid file.

    Args:
        tiles: folder of grid files, or one grid file.
        out: folder to write.
        overwrite: whether to replace an output that something else made.
        shard: (i, n), to work on every n-th slide from the i-th, i from 1.

    Raises:
        ArtefactError: nothing there, or input and output are the same folder.
    """
    if not tiles.exists():
        raise ArtefactError(f"{tiles}: no such folder; make it with mhim tile")
    grids = sorted(tiles.glob("*.h5")) if tiles.is_dir() else [tiles]
    grids = [grid for grid in grids if not grid.name.startswith(".")]
    if not grids:
        raise ArtefactError(f"{tiles}: no grid files (*.h5) here; make them with mhim tile")
    if grids[0].parent.resolve() == out.resolve():
        raise ArtefactError(f"{out}: features would replace the grids; give another folder to -o")
    first, step = (0, 1) if shard is None else (shard[0] - 1, shard[1])
    return [EncodeJob(grid, out, overwrite) for grid in grids[first::step]]


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of ``i/n``.

    Raises:
        ConfigError: not two whole numbers with 1 <= i <= n.

    >>> parse_shard("2/4")
    (2, 4)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {text}: expected i/n with 1 <= i <= n, for example --shard 1/4")
    return int(index), int(count)
