"""Random fields and outlines, in plain numpy."""

from __future__ import annotations

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, shape_hw: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth random field, float32 (h, w), about mean 0 and standard deviation 1.

    Args:
        rng: source of randomness.
        shape_hw: rows and columns.
        cell: distance between independent values, in cells of the field.
    """
    height, width = shape_hw
    knots = (int(np.ceil(height / cell)) + 3, int(np.ceil(width / cell)) + 3)
    coarse = rng.standard_normal(knots, dtype=np.float32)
    full = cv2.resize(coarse, (int(knots[1] * cell) + 1, int(knots[0] * cell) + 1), interpolation=cv2.INTER_CUBIC)
    top, left = (int(offset) for offset in rng.integers(0, max(int(cell), 1), size=2))
    return full[top : top + height, left : left + width] * np.float32(1.35)


def blob(
    rng: np.random.Generator, area_um2: float, *, elongation: float = 1.0, angle: float = 0.0, wobble: float = 0.12
) -> np.ndarray:
    """Closed wavy outline around the origin, float64 (point, 2) [um], of exactly the given area.

    Args:
        rng: source of randomness.
        area_um2: area inside.
        elongation: length over width before the waves.
        angle: direction of the length [rad].
        wobble: size of the waves relative to the radius.
    """
    n = int(np.clip(np.sqrt(area_um2) * 0.6, 24, 160))
    theta = np.linspace(0, 2 * np.pi, n, endpoint=False)
    orders = np.arange(2, 7)
    size = rng.normal(size=orders.size) * wobble / np.sqrt(orders - 1)
    phase = rng.uniform(0, 2 * np.pi, orders.size)
    radius = np.exp(np.cos(np.outer(theta, orders) + phase) @ size)
    stretch = np.sqrt(elongation)
    xy = np.stack([radius * np.cos(theta) * stretch, radius * np.sin(theta) / stretch], axis=1)
    xy = rotate(xy, angle)
    xy -= xy.mean(axis=0)
    return xy * np.sqrt(area_um2 / polygon_area(xy))


def rotate(xy: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about the origin, (point, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return xy @ np.array([[cos, sin], [-sin, cos]])


def polygon_area(xy: np.ndarray) -> float:
    """Area inside a closed outline, in the square of its unit."""
    following = np.roll(xy, -1, axis=0)
    return abs(float(np.sum(xy[:, 0] * following[:, 1] - xy[:, 1] * following[:, 0]))) / 2


def inset(xy: np.ndarray, distance: float, floor: float = 0.15) -> np.ndarray:
    """Outline moved towards its mean point by ``distance``, but never past ``floor`` of each point's radius."""
    centre = xy.mean(axis=0)
    offset = xy - centre
    radius = np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-9)
    return centre + offset * np.maximum(1 - distance / radius, floor)


def resample(xy: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points every ``step`` along a closed outline, and the direction of the outline there [rad]."""
    closed = np.vstack([xy, xy[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.arange(0, along[-1], step)
    points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    tangent = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    return points, np.arctan2(tangent[:, 1], tangent[:, 0])


def round_corners(xy: np.ndarray, times: int = 2) -> np.ndarray:
    """Outline with its corners cut ``times`` times (Chaikin)."""
    for _ in range(times):
        following = np.roll(xy, -1, axis=0)
        xy = np.stack([0.75 * xy + 0.25 * following, 0.25 * xy + 0.75 * following], axis=1).reshape(-1, 2)
    return xy


def scatter(rng: np.random.Generator, low_xy: np.ndarray, high_xy: np.ndarray, per_um2: float) -> np.ndarray:
    """Points of an irregular grid in a box, float64 (point, 2) [um]; fewer near-coincident points than chance."""
    step = per_um2**-0.5
    x = np.arange(low_xy[0] - step, high_xy[0] + step, step)
    y = np.arange(low_xy[1] - step, high_xy[1] + step, step)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    grid[::2, :, 0] += step / 2
    return (grid + rng.normal(scale=0.3 * step, size=grid.shape)).reshape(-1, 2)
