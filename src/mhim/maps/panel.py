"""Pictures with words: one map with title and colour bar, and the panel of all maps of a slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mhim.maps.config import MapKind
from mhim.maps.render import Rgb, draw_bar
from mhim.maps.scale import Scale

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of a picture."""

INK, SOFT = (24, 24, 28), (96, 96, 104)
MARGIN_PX, GAP_PX, LEADING = 16, 8, 1.35
LEAST_WIDTH_PX = 420
SHEET_COLUMNS, SHEET_CELL_PX, SHEET_LINE_PX = 6, 150, 15
NAMES: dict[MapKind, str] = {
    "attention": "Attention",
    "attention-score": "Attention score",
    "probability": "Tile probability",
    "contribution": "Contribution",
}


@dataclass(frozen=True)
class Caption:
    """Words of a picture: a bold title and plain lines below it."""

    title: str
    lines: tuple[str, ...] = ()


def describe_scale(scale: Scale, class_name: str, two_classes: bool) -> str:
    """What the numbers on a colour bar are; ``class_name`` is the class that the map speaks of, in words."""
    if scale.kind == "attention":
        return "attention weight (raw); mark = uniform" if scale.mark else "attention score (raw)"
    if scale.kind == "attention-score":
        return "attention before the softmax (raw; only differences mean something)"
    if scale.kind == "probability":
        return f"tile probability of {class_name} (raw); palest = at or below chance"
    of = "log-odds" if two_classes else "logit"
    return f"signed part of the slide's {of} of {class_name} (raw)"


def one_map(picture: Rgb, caption: Caption, scale: Scale, unit: str) -> tuple[Image.Image, Box]:
    """A map with its caption above and its colour bar below, and where in it the map itself lies."""
    height, width = picture.shape[:2]
    head = _caption_image(caption, max(width, LEAST_WIDTH_PX))
    bar = bar_image(scale, unit, min(max(width, LEAST_WIDTH_PX), 640))
    top = MARGIN_PX + head.height + GAP_PX
    return _stack([head, Image.fromarray(picture), bar]), (MARGIN_PX, top, MARGIN_PX + width, top + height)


def panel(
    caption: Caption, columns: Sequence[Sequence[tuple[str, Rgb]]], bars: Sequence[Image.Image | None]
) -> Image.Image:
    """Pictures side by side: one column a kind of map, one row a model, one colour bar a column.

    Args:
        caption: words above everything.
        columns: per column its labelled pictures from top to bottom, all of one size.
        bars: the colour bar below each column, or None.
    """
    drawn = []
    for pictures, bar in zip(columns, bars, strict=True):
        parts = []
        for label, picture in pictures:
            parts += [_text_line(label, picture.shape[1], 15, INK), Image.fromarray(picture)]
        drawn.append(_stack([*parts, *([bar] if bar is not None else [])], margin_px=0, gap_px=6))
    widths, tallest = [image.width for image in drawn], max(image.height for image in drawn)
    row = Image.new("RGB", (sum(widths) + MARGIN_PX * (len(drawn) - 1), tallest), "white")
    left = 0
    for image in drawn:
        row.paste(image, (left, 0))
        left += image.width + MARGIN_PX
    return _stack([_caption_image(caption, row.width), row])


def sheet(
    caption: Caption, rows: Sequence[tuple[str, Sequence[tuple[str, Rgb | None]]]], columns: int = SHEET_COLUMNS
) -> Image.Image:
    """A contact sheet: groups of pictures at their own size, each with a line of words below.

    Args:
        caption: words above everything.
        rows: per group its heading and its pictures with words; None stands for a picture that is missing.
        columns: pictures in a line.
    """
    side = max([picture.shape[1] for _, group in rows for _, picture in group if picture is not None] or [1])
    cell = max(side, SHEET_CELL_PX)
    parts = []
    for heading, group in rows:
        parts.append(_text_line(heading, cell * columns, 15, INK, bold=True))
        for start in range(0, len(group), columns):
            line = Image.new("RGB", ((cell + 6) * columns, side + 4 + 2 * SHEET_LINE_PX), "white")
            draw = ImageDraw.Draw(line)
            for number, (words, picture) in enumerate(group[start : start + columns]):
                left = number * (cell + 6)
                if picture is not None:
                    line.paste(Image.fromarray(picture), (left, 0))
                else:
                    draw.rectangle((left, 0, left + side - 1, side - 1), outline=SOFT)
                for row, text in enumerate(_wrap(words, _font(11), cell)[:2]):
                    draw.text((left, side + 4 + row * SHEET_LINE_PX), text, font=_font(11), fill=INK)
            parts.append(line)
    return _stack([_caption_image(caption, (cell + 6) * columns), *parts])


def bar_image(scale: Scale, unit: str, width_px: int) -> Image.Image:
    """A colour bar with ticks in raw values and the unit in words."""
    side, thick, font = 26, 14, _font(12)
    words = _wrap(unit, font, width_px - 2 * side)
    image = Image.new("RGB", (width_px, thick + 26 + round(len(words) * 12 * LEADING) + 6), "white")
    draw = ImageDraw.Draw(image)
    length = width_px - 2 * side
    image.paste(Image.fromarray(draw_bar(scale, length, thick)), (side, 2))
    draw.rectangle((side - 1, 1, side + length, thick + 2), outline=SOFT)

    def place(value: float) -> float:
        return side + (value - scale.low) / (scale.high - scale.low) * (length - 1)

    for value in scale.ticks():
        draw.line((place(value), thick + 2, place(value), thick + 6), fill=INK)
        draw.text((place(value), thick + 8), scale.text(value), font=font, fill=INK, anchor="ma")
    if scale.mark is not None:
        x = place(scale.mark)
        draw.line((x, 0, x, thick + 4), fill=INK, width=2)
    for number, line in enumerate(words):
        draw.text((side, thick + 26 + number * 12 * LEADING), line, font=font, fill=SOFT)
    return image


def _caption_image(caption: Caption, width_px: int) -> Image.Image:
    lines = [(line, 17, INK, True) for line in _wrap(caption.title, _font(17, bold=True), width_px)]
    for text in caption.lines:
        lines += [(line, 13, SOFT, False) for line in _wrap(text, _font(13), width_px)]
    return _stack(
        [_text_line(text, width_px, size, ink, bold) for text, size, ink, bold in lines], margin_px=0, gap_px=0
    )


def _text_line(text: str, width_px: int, size_px: int, ink: tuple[int, int, int], bold: bool = False) -> Image.Image:
    image = Image.new("RGB", (width_px, round(size_px * LEADING) + 2), "white")
    ImageDraw.Draw(image).text((0, 0), text, font=_font(size_px, bold), fill=ink)
    return image


def _stack(images: Sequence[Image.Image], margin_px: int = MARGIN_PX, gap_px: int = GAP_PX) -> Image.Image:
    """Images below each other, left-aligned, on white with a margin."""
    width = max(image.width for image in images)
    height = sum(image.height for image in images) + gap_px * (len(images) - 1)
    canvas = Image.new("RGB", (width + 2 * margin_px, height + 2 * margin_px), "white")
    top = margin_px
    for image in images:
        canvas.paste(image, (margin_px, top))
        top += image.height + gap_px
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """The text in lines that fit; a word longer than a line stays whole."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@cache
def _font(size_px: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size_px)


def limit_width(picture: Rgb, width_px: int) -> Rgb:
    """The picture, made smaller to at most ``width_px``."""
    if picture.shape[1] <= width_px:
        return picture
    height = max(1, round(picture.shape[0] * width_px / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width_px, height), Image.Resampling.BOX))
