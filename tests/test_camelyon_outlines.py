"""Outlines over a lattice: exact areas against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.synth.outlines import SlideMeta, polygon_area, polygon_coverage, tumour_coverage

RECTANGLE = np.array([[1.25, 0.5], [3.5, 0.5], [3.5, 2.25], [1.25, 2.25]])


def test_a_rectangle_covers_each_cell_by_its_share() -> None:
    along, down = np.array([0, 0.75, 1, 0.5, 0]), np.array([0.5, 1, 0.25, 0])
    assert np.allclose(polygon_coverage(RECTANGLE, (4, 5)), np.outer(down, along), atol=1e-12)
    assert np.allclose(polygon_coverage(RECTANGLE[::-1], (4, 5)), np.outer(down, along), atol=1e-12)
    assert polygon_area(RECTANGLE) == pytest.approx(2.25 * 1.75)


def test_a_triangle_covers_half_of_the_cells_on_its_diagonal() -> None:
    triangle = np.array([[0.0, 0.0], [3.0, 3.0], [0.0, 3.0]])
    assert np.allclose(polygon_coverage(triangle, (3, 3)), [[0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5]], atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 60), st.floats(0.2, 4), st.floats(0.1, 4), st.floats(0, 6.28), st.floats(4, 6))
def test_a_regular_polygon_keeps_its_area(n: int, wide: float, high: float, turn: float, middle: float) -> None:
    angle = 2 * np.pi * np.arange(n) / n
    polygon = np.stack([np.cos(angle), np.sin(angle)], axis=1) * [wide, high]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    placed = polygon @ rotation + middle
    covered = polygon_coverage(placed, (11, 11))
    area = n / 2 * np.sin(2 * np.pi / n) * wide * high
    assert polygon_area(placed) == pytest.approx(area, abs=1e-9)
    assert covered.sum() == pytest.approx(area, abs=1e-9)
    assert covered.min() >= 0
    assert covered.max() <= 1


def test_holes_are_taken_out_and_overlaps_count_once() -> None:
    def square(low: float, high: float) -> np.ndarray:
        return 100 * np.array([[low, low], [high, low], [high, high], [low, high]], dtype=float) + 1000

    meta = SlideMeta("s", 1, "h", "train", None, (square(0, 4), square(0, 4), square(2, 4)), (square(1, 2),))
    wanted = np.zeros((5, 5))
    wanted[:4, :4] = 1
    wanted[1, 1] = 0
    assert np.allclose(tumour_coverage(meta, np.array([1000, 1000]), 100, (5, 5)), wanted, atol=1e-12)
