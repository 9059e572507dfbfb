"""What a file is, by its first bytes: names and suffixes are not believed."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


class Content(Enum):
    """Kinds of file that are read in different ways."""

    TIFF = "tiff"
    PICTURE = "picture"
    OTHER = "other"


def content_of(path: Path) -> Content:
    """What is in a file or folder."""
    if not path.is_file():
        return Content.OTHER
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(TIFF_STARTS):
        return Content.TIFF
    return Content.PICTURE if is_png(head) or is_jpeg(head) else Content.OTHER


def is_png(head: bytes) -> bool:
    """Whether bytes begin a PNG file."""
    return head.startswith(PNG_START)


def is_jpeg(head: bytes) -> bool:
    """Whether bytes begin a JPEG file."""
    return head.startswith(JPEG_START)
