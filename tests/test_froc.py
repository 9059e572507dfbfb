"""FROC by hand, against counting at every threshold, and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.froc import FALSE_ALARMS, NO_LESION, Detections, Froc, FrocEvents, detect, froc, lesions_of_tiles

LAW = settings(deadline=None, max_examples=80)


def slide(rows: list[tuple[float, int]], n_lesions: int) -> Detections:
    return Detections(np.array([c for c, _ in rows]), np.array([k for _, k in rows], dtype=np.int64), n_lesions)


def curve(slides: list[Detections]) -> Froc:
    found = froc(slides)
    assert found is not None
    return found


def test_by_hand() -> None:
    """Two slides, three lesions; thresholds 0.9, 0.8, 0.7, 0.6, 0.5: hits 1, 1, 2, 2, 2, false alarms 0, 1, 1, 2, 3."""
    found = curve([slide([(0.9, 0), (0.8, -1), (0.75, 0), (0.6, -1)], 1), slide([(0.7, 1), (0.5, -1)], 2)])
    assert found.false_alarms.tolist() == [0, 0, 0.5, 0.5, 1.0, 1.5]
    assert found.sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert found.average_sensitivity == pytest.approx((1 / 3 + 5 * 2 / 3) / 6)


def test_pointing_at_every_lesion_first_is_perfect() -> None:
    found = curve([slide([(0.9, 0), (0.8, 1), (0.1, -1)], 2), slide([(0.2, -1)], 0)])
    assert found.average_sensitivity == 1.0


def test_pointing_at_nothing_finds_nothing() -> None:
    assert curve([slide([], 2)]).average_sensitivity == 0.0
    assert froc([slide([(0.5, -1)], 0)]) is None
    assert froc([]) is None


def test_equal_confidence_is_one_threshold() -> None:
    found = curve([slide([(0.5, 0), (0.5, -1), (0.5, -1)], 1)])
    assert found.false_alarms.tolist() == [0, 2]
    assert found.sensitivity.tolist() == [0, 1]
    assert found.at([1.0])[0] == 0.5  # linear between points


def test_chance_in_closed_form() -> None:
    """One lesion among m uniform false alarms a slide: found before more than r alarms a slide with chance r / m."""
    rng = np.random.default_rng(0)
    m = 10
    slides = [slide([(c, 0 if i == 0 else -1) for i, c in enumerate(rng.random(m + 1))], 1) for _ in range(4000)]
    np.testing.assert_allclose(curve(slides).at(), np.array(FALSE_ALARMS) / m, atol=0.02)


slides_ = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.5, 0.9]), st.integers(-1, 2)), max_size=8),
        st.just(3) | st.just(4),
    ),
    min_size=1,
    max_size=5,
)


@LAW
@given(slides_)
def test_the_curve_is_what_counting_at_every_threshold_gives(drawn: list[tuple[list[tuple[float, int]], int]]) -> None:
    found = curve([slide(*each) for each in drawn])
    points = []
    for cut in sorted({c for rows, _ in drawn for c, _ in rows}, reverse=True):
        hits = sum(len({k for c, k in rows if c >= cut and k >= 0}) for rows, _ in drawn)
        alarms = sum(c >= cut and k < 0 for rows, _ in drawn for c, k in rows)
        points.append((alarms / len(drawn), hits / sum(n for _, n in drawn)))
    kept = [(0.0, 0.0)]
    for point in points:  # a threshold at which nothing new counts adds no point
        if point != kept[-1]:
            kept.append(point)
    ours = [(0.0, 0.0)]
    for point in zip(found.false_alarms, found.sensitivity, strict=True):
        if point != ours[-1]:
            ours.append(point)
    assert np.array(ours) == pytest.approx(np.array(kept))


@LAW
@given(slides_, st.integers(0, 100))
def test_weights_are_repeated_slides(drawn: list[tuple[list[tuple[float, int]], int]], seed: int) -> None:
    slides = [slide(*each) for each in drawn]
    weights = np.random.default_rng(seed).integers(0, 3, len(slides))
    weighed = FrocEvents.of(slides).curve(weights.astype(float))
    repeated = froc([each for each, times in zip(slides, weights, strict=True) for _ in range(times)])
    assert (weighed is None) == (repeated is None)
    if weighed is not None and repeated is not None:
        np.testing.assert_allclose(weighed.at(), repeated.at(), atol=1e-12)


def test_dropping_many_false_alarms_leaves_the_rates_that_are_read() -> None:
    rng = np.random.default_rng(0)
    slides = [slide([(c, 0 if i == 0 else -1) for i, c in enumerate(rng.random(40))], 1) for _ in range(30)]
    events = FrocEvents.of(slides)
    short = events.until(10)
    assert len(short.confidence) < len(events.confidence)
    np.testing.assert_allclose(short.curve().at(), events.curve().at())  # pyright: ignore[reportOptionalMemberAccess]
    assert len(events.until(40).confidence) == len(events.confidence)


def grid(columns: int, rows: int) -> np.ndarray:
    return np.array([(x * 10, y * 10) for y in range(rows) for x in range(columns)])


def test_annotated_tiles_that_touch_are_one_lesion() -> None:
    xy = grid(4, 3)
    inside = np.array([1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0], dtype=bool)  # two touch at a corner, two at a side
    found = lesions_of_tiles(xy, inside, 10)
    assert found[inside].tolist() == [0, 1, 0, 1]
    assert (found[~inside] == NO_LESION).all()
    assert (lesions_of_tiles(xy, np.zeros(12, dtype=bool), 10) == NO_LESION).all()


def test_a_detection_silences_its_neighbourhood() -> None:
    xy = grid(5, 1)
    values = np.array([0.9, 0.8, 0.1, 0.7, 0.95])
    lesion = np.array([0, 0, -1, -1, 1])
    found = detect(xy, values, lesion, 10)
    assert found.confidence.tolist() == [0.95, 0.9, 0.1]
    assert found.lesion.tolist() == [1, 0, -1]
    assert found.n_lesions == 2
    assert detect(xy, values, lesion, 1).confidence.tolist() == sorted(values, reverse=True)
