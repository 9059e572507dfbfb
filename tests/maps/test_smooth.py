"""Smooth maps, by laws: a constant stays constant, centres keep their value, nothing lies outside the tiles."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from test_lattice import grid
from typer.testing import CliRunner

from mhim.cli import app
from mhim.maps import Lattice, MapConfig, Study, slide_maps
from mhim.maps.smooth import smooth_picture
from mhim.training.runs import Run

LAYOUTS = [(256.0, 256.0), (224.0, 112.0), (256.0, 192.0), (300.0, 450.0), (512.4, 512.4), (100.0, 25.0)]
NAMES = ["plain", "half overlap", "quarter overlap", "gaps", "odd mpp", "dense"]


def with_holes(tile: float, step: float, seed: int, keep: float = 0.6) -> np.ndarray:
    xy = grid((1000, 400), step, 12, 9)
    return xy[np.random.default_rng(seed).random(len(xy)) < keep]


@settings(max_examples=30, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 10_000),
    constant=st.floats(-5, 5),
    per_px=st.tuples(st.floats(5, 60), st.floats(5, 60)),
)
def test_a_constant_stays_constant_and_only_on_tiles(layout, seed, constant, per_px):
    """At any scale of the picture; painted pixels are those that the blocky map paints."""
    xy = with_holes(layout[0], layout[1], seed)
    if len(xy) == 0:
        return
    lattice = Lattice.of_tiles(xy, layout[0])
    size = (200, 150)
    drawn = smooth_picture(lattice, np.full(len(xy), constant), size, per_px, (900.0, 300.0))
    blocky = lattice.sample(lattice.raster(np.ones(len(xy))), size, per_px, (900.0, 300.0))
    np.testing.assert_array_equal(np.isnan(drawn), np.isnan(blocky))
    np.testing.assert_allclose(drawn[np.isfinite(drawn)], constant, atol=1e-9)


@pytest.mark.parametrize(("tile", "step"), LAYOUTS, ids=NAMES)
def test_a_tile_centre_keeps_the_tiles_value(tile: float, step: float):
    """Seen by a picture of one pixel on each centre, also beside holes and under overlap."""
    xy = with_holes(tile, step, 3)
    values = np.random.default_rng(0).normal(size=len(xy))
    lattice = Lattice.of_tiles(xy, tile)
    centres = (lattice.boxes[:, :2] + lattice.boxes[:, 2:]) / 2 * lattice.cell_px0 + lattice.origin_px0
    assert np.abs(centres - (xy + tile / 2)).max() <= lattice.cell_px0 / 2 + 1
    seen = [
        smooth_picture(lattice, values, (1, 1), (1.0, 1.0), (float(x) - 0.5, float(y) - 0.5))[0, 0] for x, y in centres
    ]
    np.testing.assert_allclose(seen, values, atol=1e-9)


def test_between_two_centres_values_lie_on_a_line():
    """Beyond the outer centres the outer values hold, up to the tile's edge."""
    lattice = Lattice.of_tiles(np.array([[0, 0], [100, 0]]), 100.0)
    seen = smooth_picture(lattice, np.array([1.0, 3.0]), (220, 100), (1.0, 1.0), (-10.0, 0.0))[50]
    x = np.arange(220) - 10 + 0.5
    expected = np.interp(x, [50, 150], [1, 3])
    np.testing.assert_allclose(seen[10:210], expected[10:210], atol=1e-9)
    assert np.isnan(seen[:10]).all()
    assert np.isnan(seen[210:]).all()


def test_values_stay_within_those_of_the_tiles():
    xy = with_holes(256, 192, 5)
    values = np.random.default_rng(1).normal(size=len(xy))
    drawn = smooth_picture(Lattice.of_tiles(xy, 256.0), values, (300, 300), (9.0, 9.0), (900.0, 300.0))
    assert np.nanmin(drawn) >= values.min() - 1e-12
    assert np.nanmax(drawn) <= values.max() + 1e-12


def test_a_linear_ramp_is_drawn_without_steps():
    """Inside the outer centres bilinear interpolation is exact for a plane."""
    xy = grid((0, 0), 64, 10, 8)
    plane = 2 * (xy[:, 0] + 32) - 3 * (xy[:, 1] + 32)
    drawn = smooth_picture(Lattice.of_tiles(xy, 64.0), plane.astype(float), (160, 128), (4.0, 4.0))
    x, y = np.meshgrid((np.arange(160) + 0.5) * 4, (np.arange(128) + 0.5) * 4)
    inner = (slice(8, 120), slice(8, 152))
    np.testing.assert_allclose(drawn[inner], (2 * x - 3 * y)[inner], atol=1e-6)


def test_a_smooth_map_paints_where_the_blocky_one_does(runs: list[Run]):
    configs = [MapConfig.model_validate({"max_side_px": 288, "smooth": smooth}) for smooth in (False, True)]
    blocky, smooth = (slide_maps(Study.of(runs, config), "s00", config) for config in configs)
    slug = next(iter(blocky.values))
    pictures = [maps.picture(slug, "attention") for maps in (blocky, smooth)]
    assert pictures[0] is not None
    assert pictures[1] is not None
    ground = np.rint(blocky.underlay.muted).astype(np.uint8)
    painted = [(picture != ground).any(axis=2) for picture in pictures]
    np.testing.assert_array_equal(painted[0], painted[1])
    assert (pictures[0] != pictures[1]).any()
    assert any("interpolated" in notice for notice in smooth.notices)


def test_smooth_is_another_look_and_blocky_keeps_its_own():
    """Folders of maps that earlier versions drew stay current."""
    first, second = (MapConfig.model_validate({"smooth": smooth}) for smooth in (False, True))
    assert first.look != second.look
    from mhim.config import fingerprint
    from mhim.maps.config import PLACES

    assert first.look == fingerprint(first.model_dump(mode="json", exclude=PLACES | {"smooth"}))


def test_verbs_draw_smoothly(study_run: Path, tmp_path: Path):
    runner = CliRunner()
    common = [str(study_run), "--smooth"]
    drawn = runner.invoke(app, ["heatmap", *common, "-o", str(tmp_path / "maps"), "--slides", "s00"])
    assert drawn.exit_code == 0, drawn.output
    figure = runner.invoke(app, ["figure", *common, "--slide", "s00", "-o", str(tmp_path / "f.png"), "--dpi", "60"])
    assert figure.exit_code == 0, figure.output
    assert "interpolated" in figure.output
