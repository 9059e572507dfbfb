"""Small line charts as inline SVG: styled by the page's CSS, so that they follow light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 340, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 42
UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Line:
    """A line in data units, with a CSS class and optionally a dot at one index."""

    x: ArrayLike
    y: ArrayLike
    css: str
    dot: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Band:
    """The area between two lines."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    css: str = "band"


@dataclass(frozen=True)
class Dots:
    """Points with an area each, in square pixels."""

    x: ArrayLike
    y: ArrayLike
    area_px2: ArrayLike
    css: str = "dots"


@dataclass(frozen=True)
class Axes:
    """The frame of a chart: names and ranges of its axes, what a screen reader says, whole ticks or any."""

    x_name: str
    y_name: str
    description: str
    x_range: tuple[float, float] = UNIT
    y_range: tuple[float, float] = UNIT
    whole_x: bool = False


def chart(axes: Axes, marks: Sequence[Line | Band | Dots]) -> Markup:
    """One chart; later marks lie on top."""
    parts = [_grid(axes), *(_draw(axes, mark) for mark in marks)]
    body = Markup("").join(parts)
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{text}"><title>{text}</title>{body}</svg>'
    ).format(w=WIDTH, h=HEIGHT, text=axes.description, body=body)


def span(values: Sequence[ArrayLike], least: float = 0.0) -> tuple[float, float]:
    """A range from ``least`` (or the lowest value, if lower) to just above the highest finite value."""
    together = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in values] or [np.zeros(1)])
    finite = together[np.isfinite(together)]
    if len(finite) == 0:
        return least, least + 1
    low, high = min(least, float(finite.min())), float(finite.max())
    return low, high + 0.05 * (high - low) if high > low else low + 1


def _draw(axes: Axes, mark: Line | Band | Dots) -> Markup:
    if isinstance(mark, Band):
        x = np.asarray(mark.x, dtype=np.float64)
        outline = np.concatenate([np.asarray(mark.low, dtype=np.float64), np.asarray(mark.high)[::-1]])
        points = _points(axes, np.concatenate([x, x[::-1]]), outline)
        return Markup('<polygon class="{}" points="{}"/>').format(mark.css, points)
    x, y = np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64)
    if isinstance(mark, Dots):
        radii = np.sqrt(np.asarray(mark.area_px2, dtype=np.float64) / np.pi)
        return Markup("").join(_dot(axes, mark.css, *at) for at in zip(x, y, radii, strict=True))
    finite = np.isfinite(x) & np.isfinite(y)
    drawn = Markup('<polyline class="{}" points="{}">{}</polyline>').format(
        mark.css,
        _points(axes, x[finite], y[finite]),
        Markup("<title>{}</title>").format(mark.label) if mark.label else "",
    )
    if mark.dot is not None and finite[mark.dot]:
        drawn += _dot(axes, f"{mark.css} at", float(x[mark.dot]), float(y[mark.dot]), 3.5)
    return drawn


def _dot(axes: Axes, css: str, x: float, y: float, radius_px: float) -> Markup:
    left, top = _place(axes, np.array([x]), np.array([y]))[0]
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(
        css, _short(left), _short(top), _short(radius_px)
    )


def _grid(axes: Axes) -> Markup:
    """Gridlines, tick texts and axis names."""
    parts: list[Markup] = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(*axes.x_range, whole=axes.whole_x):
        x = _short(_place(axes, np.array([value]), np.array([axes.y_range[0]]))[0][0])
        parts.append(Markup('<line class="grid" x1="{x}" x2="{x}" y1="{a}" y2="{b}"/>').format(x=x, a=TOP, b=bottom))
        parts.append(_text(x, bottom + 15, "middle", f"{value:g}"))
    for value in ticks(*axes.y_range):
        y = _short(_place(axes, np.array([axes.x_range[0]]), np.array([value]))[0][1])
        parts.append(Markup('<line class="grid" y1="{y}" y2="{y}" x1="{a}" x2="{b}"/>').format(y=y, a=LEFT, b=right))
        parts.append(_text(LEFT - 6, float(y) + 4, "end", f"{value:g}"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, "middle", axes.x_name, "name"))
    middle = (TOP + bottom) / 2
    parts.append(
        Markup('<text class="name" text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>').format(
            _short(middle), axes.y_name
        )
    )
    return Markup("").join(parts)


def _text(x: float | str, y: float, anchor: str, text: str, css: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        css, x if isinstance(x, str) else _short(x), _short(y), anchor, escape(text)
    )


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round values within a range.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = max((high - low) / 5, 1.0 if whole else 0.0)
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    power = 10.0 ** float(np.floor(np.log10(rough)))
    step = power * next(factor for factor in factors if factor * power >= rough * (1 - 1e-9))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(index * step, 10) for index in range(first, last + 1)]


def _place(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, 2) positions in the picture."""
    (x_low, x_high), (y_low, y_high) = axes.x_range, axes.y_range
    across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
    down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
    return np.stack([across, down], axis=1)


def _points(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return " ".join(f"{_short(left)},{_short(top)}" for left, top in _place(axes, x, y))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
