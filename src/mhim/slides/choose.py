"""Which reader opens a file: by content, and by what the readers themselves find in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import openslide

from mhim.errors import SlideError
from mhim.slides.base import SlideBase
from mhim.slides.content import Content, content_of
from mhim.slides.openslide import GENERIC_TIFF, OpenSlideSlide, file_scale, open_file
from mhim.slides.picture import PictureSlide
from mhim.slides.scale import FileScale, Scale, resolve_scale
from mhim.slides.tiff import TiffSlide
from mhim.slides.tiff_index import IN_STRIPS, TiffIndex, read_index, read_scale
from mhim.slides.verify import find_difference

PLAIN_VENDORS = (None, "aperio", GENERIC_TIFF)
"""What OpenSlide calls files whose levels are nothing but tiles in a lattice; None: it does not know them."""


def open_by_content(
    path: Path, slide_id: str | None, mpp0: float | None, mpp0_source: str, force_scale: bool
) -> SlideBase:
    """The slide, read directly where that gives OpenSlide's pixels, else by OpenSlide.

    Raises:
        SlideError: no reader can read it, or its scale is unknown.
    """
    given = (slide_id, mpp0, mpp0_source, force_scale)
    content = content_of(path)
    if content is Content.PICTURE:
        return PictureSlide(path, *given)
    if content is Content.OTHER:
        return OpenSlideSlide(path, *given)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor not in PLAIN_VENDORS:
        return OpenSlideSlide(path, *given)
    try:
        index = read_index(path)
    except SlideError as error:
        is_plain = vendor is None and IN_STRIPS in str(error)
        return PictureSlide(path, *given) if is_plain else OpenSlideSlide(path, *given)
    slide, difference = _direct(path, index, vendor, *given)
    if difference is None:
        return slide
    slide.close()
    fallback = OpenSlideSlide(path, *given)
    fallback.notes += (f"{path}: read by OpenSlide, not directly: {difference}",)
    return fallback


def open_tiff(path: Path, slide_id: str | None, mpp0: float | None, mpp0_source: str, force_scale: bool) -> TiffSlide:
    """The slide read directly, also where its pixels differ from OpenSlide's; that is noted then.

    Raises:
        SlideError: not a tiled TIFF of plain levels, or its scale is unknown.
    """
    vendor = openslide.OpenSlide.detect_format(path) if path.is_file() else None
    if vendor not in PLAIN_VENDORS:
        raise SlideError(f"{path}: the levels of {vendor} files are more than plain tiles; use --reader openslide")
    slide, difference = _direct(path, read_index(path), vendor, slide_id, mpp0, mpp0_source, force_scale)
    if difference is not None:
        slide.notes += (f"{path}: read directly, not as OpenSlide reads it: {difference}",)
    return slide


def header_scale(path: Path, mpp0: float | None, mpp0_source: str) -> Scale:
    """The scale that a slide would have, without decoding a pixel.

    Raises:
        SlideError: not readable, or no scale anywhere.
    """
    content, vendor = content_of(path), None
    if content is Content.TIFF:
        vendor = openslide.OpenSlide.detect_format(path)
    if content is Content.PICTURE:
        return resolve_scale(path, FileScale(), mpp0, mpp0_source)
    if content is Content.TIFF and vendor is None:
        mpp_xy, resolution_mpp_xy = read_scale(path)
        return resolve_scale(path, FileScale(mpp_xy, resolution_mpp_xy), mpp0, mpp0_source)
    with open_file(path) as file:
        found = file_scale(file)
    if vendor == GENERIC_TIFF:
        found = replace(found, metadata=read_scale(path)[0] or found.metadata)
    return resolve_scale(path, found, mpp0, mpp0_source)


def _direct(
    path: Path, index: TiffIndex, vendor: str | None, slide_id: str | None, *given: Any
) -> tuple[TiffSlide, str | None]:
    """The slide read directly, and how it differs from what OpenSlide reads, if at all."""
    found = FileScale(index.mpp_xy, index.resolution_mpp_xy)
    if vendor is None:
        return _with_scale(path, index, slide_id, found, *given), None
    try:
        reference = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: cannot be opened: {error}") from None
    with reference:
        theirs = file_scale(reference)
        found = replace(theirs, metadata=index.mpp_xy or theirs.metadata)
        slide = _with_scale(path, index, slide_id, found, *given)
        return slide, find_difference(slide, reference)


def _with_scale(path: Path, index: TiffIndex, slide_id: str | None, found: FileScale, *given: Any) -> TiffSlide:
    scale = resolve_scale(path, found, *given)
    slide = TiffSlide(path, scale.mpp, scale.source, slide_id, index)
    slide.notes = (scale.note,) if scale.note else ()
    return slide
