"""Outline files of other programs, and tile shares against exact areas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.annotations import Outlines, Region, read_outlines
from mhim.errors import SlideError

LAW = settings(deadline=None, max_examples=60)
C16 = Path(__file__).parents[2] / "shared/data/camelyon16_tcga_meta/c16_test_001_annotation.json"


def square(left: float, top: float, side: float) -> np.ndarray:
    return np.array([(left, top), (left + side, top), (left + side, top + side), (left, top + side)], dtype=float)


def boxes(columns: int, rows: int, side: float) -> np.ndarray:
    return np.array([(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)])


def test_squares_by_hand() -> None:
    found = Outlines((Region((square(5, 0, 10),)),)).fractions(boxes(3, 2, 10))
    assert found.tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_a_ring_inside_another_is_a_hole() -> None:
    found = Outlines(
        (
            Region(
                (square(0, 0, 10), square(2.5, 2.5, 5)),
            ),
        )
    ).fractions(boxes(1, 1, 10))
    assert found == pytest.approx(0.75)


def test_areas_that_overlap_count_once_and_excluded_ones_are_cut_out() -> None:
    both = (Region((square(0, 0, 10),)), Region((square(5, 0, 10),)))
    assert Outlines(both).fractions(boxes(2, 1, 10)) == pytest.approx([1.0, 0.5])
    cut = (*both, Region((square(0, 0, 5),), is_excluded=True))
    assert Outlines(cut).fractions(boxes(2, 1, 10)) == pytest.approx([0.75, 0.5])


def test_nothing_is_inside_without_outlines_or_far_from_them() -> None:
    assert Outlines(()).fractions(boxes(2, 1, 10)).tolist() == [0, 0]
    assert Outlines((Region((square(500, 500, 9),)),)).fractions(boxes(2, 1, 10)).tolist() == [0, 0]
    assert Outlines((Region((square(0, 0, 9),)),)).fractions(np.zeros((0, 4))).shape == (0,)


corners = st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=3, max_size=3)


@LAW
@given(st.lists(corners, min_size=1, max_size=4), st.lists(corners, max_size=2))
def test_shares_are_the_exact_areas(
    drawn: list[list[tuple[float, float]]], cut: list[list[tuple[float, float]]]
) -> None:
    shapely = pytest.importorskip("shapely", reason="needs the extra export")
    regions = [Region((np.array(each),)) for each in drawn]
    regions += [Region((np.array(each),), is_excluded=True) for each in cut]
    area = shapely.union_all([shapely.Polygon(each).buffer(0) for each in drawn])
    if cut:
        area = area.difference(shapely.union_all([shapely.Polygon(each).buffer(0) for each in cut]))
    at = boxes(3, 3, 20)
    expected = [shapely.box(*box).intersection(area).area / 400 for box in at]
    np.testing.assert_allclose(Outlines(tuple(regions)).fractions(at), expected, atol=0.04)


def test_more_and_finer_outlines_reach_the_exact_area() -> None:
    shapely = pytest.importorskip("shapely", reason="needs the extra export")
    angle = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    ring = 1000 + 700 * np.stack([np.cos(angle), np.sin(angle) * (1 + 0.2 * np.cos(5 * angle))], axis=1)
    at, exact = boxes(20, 20, 100.0), shapely.Polygon(ring)
    expected = np.array([shapely.box(*box).intersection(exact).area / 1e4 for box in at])
    found = Outlines((Region((ring,)),)).fractions(at)
    np.testing.assert_allclose(found, expected, atol=0.005)
    assert found.sum() * 1e4 == pytest.approx(exact.area, rel=1e-3)


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
  <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>
    <Coordinate Order="1" X="10" Y="0" /><Coordinate Order="0" X="0.0" Y="0" />
    <Coordinate Order="2" X="10" Y="10" /><Coordinate Order="3" X="0" Y="10" /></Coordinates></Annotation>
  <Annotation Name="hole" Type="Polygon" PartOfGroup="_2" Color="#000000"><Coordinates>
    <Coordinate Order="0" X="0" Y="0" /><Coordinate Order="1" X="5" Y="0" />
    <Coordinate Order="2" X="5" Y="5" /><Coordinate Order="3" X="0" Y="5" /></Coordinates></Annotation>
  <Annotation Name="dot" Type="Dot" PartOfGroup="None"><Coordinates>
    <Coordinate Order="0" X="1" Y="1"/></Coordinates></Annotation>
</Annotations><AnnotationGroups>
  <Group Name="_2" PartOfGroup="None"/><Group Name="part" PartOfGroup="_2"/>
</AnnotationGroups></ASAP_Annotations>
"""


@pytest.mark.parametrize(
    ("group", "expected"), [("_0", 0.75), ("Tumor", 0.75), ("None", 0.75), ("part", 0.0), ("normal", 0.0)]
)
def test_asap_outlines_come_in_order_and_the_group_2_is_cut_out(group: str, expected: float, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(ASAP.format(group=group))
    found = read_outlines(tmp_path / "a.xml")
    assert len(found) == 2
    assert found.fractions(boxes(1, 1, 10)) == pytest.approx(expected)


def geojson(name: str | None, geometry: dict[str, object]) -> dict[str, object]:
    facts = {"objectType": "annotation"} | (
        {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    )
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": facts}


def closed(ring: np.ndarray) -> list[list[float]]:
    return [*ring.tolist(), ring[0].tolist()]


POLYGON = {"type": "Polygon", "coordinates": [closed(square(0, 0, 10)), closed(square(0, 0, 5))]}
MULTI = {"type": "MultiPolygon", "coordinates": [[closed(square(0, 0, 5))], [closed(square(5, 5, 5))]]}


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ({"type": "FeatureCollection", "features": [geojson("Tumor", POLYGON)]}, 0.75),
        ([geojson(None, POLYGON)], 0.75),
        (geojson("Tumor", MULTI), 0.5),
        (
            [
                geojson("Tumor", MULTI),
                geojson("Ignore*", {"type": "Polygon", "coordinates": [closed(square(0, 0, 5))]}),
            ],
            0.25,
        ),
        ([geojson("Tumor", {"type": "Point", "coordinates": [1, 1]}), geojson("Tumor", MULTI)], 0.5),
        (MULTI, 0.5),
        ({"positive": [{"name": "a", "vertices": square(0, 0, 10).tolist()}], "negative": []}, 1.0),
        (
            {
                "positive": [{"name": "a", "vertices": square(0, 0, 10).tolist()}],
                "negative": [{"name": "b", "vertices": square(0, 0, 5).tolist()}],
            },
            0.75,
        ),
    ],
)
def test_geojson_and_lists_of_outlines(whole: object, expected: float, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps(whole))
    assert read_outlines(tmp_path / "a.geojson").fractions(boxes(1, 1, 10)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", "<html></html>"),
        ("a.xml", "not xml"),
        ("a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><ASAP_Annotations><Annotations/></ASAP_Annotations>'),
        ("a.json", "{"),
        ("a.json", '{"type": "Topology"}'),
        ("a.json", '{"type": "Polygon", "coordinates": [[["a", 1], [2, 3], [4, 5]]]}'),
        ("a.json", '{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 3], [4, 5]]]}'),
        ("a.json", '{"some": "thing"}'),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SlideError, match=f"{name}: not a readable"):
        read_outlines(tmp_path / name)


def test_a_missing_or_unknown_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="none.xml: the annotation cannot be read"):
        read_outlines(tmp_path / "none.xml")
    with pytest.raises(SlideError, match=r"a.svg: not an outline file .known: .xml, .geojson, .json"):
        read_outlines(tmp_path / "a.svg")


@pytest.mark.skipif(not C16.is_file(), reason="needs ../shared/data")
def test_real_outlines_have_their_area() -> None:
    """CAMELYON16 test_001: tile shares sum to the union of its outlines."""
    shapely = pytest.importorskip("shapely", reason="needs the extra export")
    outlines = read_outlines(C16)
    rings = [region.rings[0] for region in outlines.regions if not region.is_excluded]
    exact = shapely.union_all([shapely.Polygon(ring).buffer(0) for ring in rings])
    left, top, right, bottom = exact.bounds
    side = 512.0
    columns, rows = int((right - left) // side) + 2, int((bottom - top) // side) + 2
    at = boxes(columns, rows, side) + np.array([left, top, left, top]) - side / 2
    assert outlines.fractions(at).sum() * side**2 == pytest.approx(exact.area, rel=2e-3)


def test_the_tiling_takes_outlines_where_it_takes_images(tmp_path: Path) -> None:
    from mhim.tiling import annotation_fractions

    (tmp_path / "a.xml").write_text(ASAP.format(group="_0"))
    found = annotation_fractions(tmp_path / "a.xml", (300, 200), boxes(2, 1, 10))
    assert found.dtype == np.float32
    assert found == pytest.approx([0.75, 0.0])
