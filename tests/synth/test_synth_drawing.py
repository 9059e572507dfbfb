import numpy as np
import pytest

from mhim.synth.canvas import Canvas
from mhim.synth.cells import fibre_angle
from mhim.synth.config import SynthConfig
from mhim.synth.geometry import Region
from mhim.synth.layout import lay_out
from mhim.synth.nuclei import NUCLEI, make_stamps
from mhim.synth.plan import plan_cohort
from mhim.synth.shapes import blob, inset, polygon_area, resample, rotate, scatter, smooth_noise
from mhim.synth.slide import MASK_DOWNSAMPLE, tumour_mask

RNG = np.random.default_rng


@pytest.mark.parametrize("area", [300.0, 5000.0, 80000.0])
def test_blob_has_exactly_its_area_and_survives_a_turn(area):
    outline = blob(RNG(1), area, elongation=2.0, angle=0.4)
    assert polygon_area(outline) == pytest.approx(area)
    assert polygon_area(rotate(outline, 1.1)) == pytest.approx(area)


def test_inset_of_a_circle_is_a_smaller_circle_and_resample_walks_it_evenly():
    theta = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 50 * np.stack([np.cos(theta), np.sin(theta)], axis=1) + 7
    smaller = inset(circle, 10)
    np.testing.assert_allclose(np.linalg.norm(smaller - 7, axis=1), 40)
    points, direction = resample(smaller, 5.0)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(steps, 5.0, rtol=0.01)
    radial = (points - 7) / 40
    assert np.abs(radial[:, 0] * np.cos(direction) + radial[:, 1] * np.sin(direction))[1:-1].max() < 0.05


def test_scatter_has_the_wanted_density():
    points = scatter(RNG(2), np.zeros(2), np.array([1000.0, 800.0]), 0.004)
    is_in = (points >= 0).all(axis=1) & (points < [1000, 800]).all(axis=1)
    assert is_in.sum() == pytest.approx(0.004 * 800000, rel=0.05)


def test_smooth_noise_is_about_standard_and_smooth():
    field = smooth_noise(RNG(3), (400, 500), 12.0)
    assert field.shape == (400, 500)
    assert field.std() == pytest.approx(1, abs=0.15)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.15


@pytest.mark.parametrize("mpp", [0.46, 0.5, 1.0])
def test_a_marked_outline_has_its_area_at_every_scale(mpp):
    canvas = Canvas((800, 640), mpp)
    canvas.regions[:] = Region.STROMA
    outline = blob(RNG(4), 9000.0) + [150, 140]
    canvas.mark(outline, Region.SUBTLE)
    area = float((canvas.regions == Region.SUBTLE).sum()) * mpp**2
    assert area == pytest.approx(9000, rel=0.02 * mpp / 0.5 + 0.01)
    assert canvas.region_at(outline.mean(axis=0)[None])[0] == Region.SUBTLE
    assert canvas.region_at(np.array([[-5.0, 10.0]]))[0] == Region.GLASS


def test_marking_leaves_glass_alone():
    canvas = Canvas((160, 160), 0.5)
    canvas.regions[:, :80] = Region.STROMA
    canvas.mark(np.array([[10.0, 10.0], [70.0, 10.0], [70.0, 70.0], [10.0, 70.0]]), Region.SALIENT)
    assert not canvas.regions[:, 80:].any()
    assert (canvas.regions[:, :80] == Region.SALIENT).any()


def test_mask_pixel_is_the_majority_of_the_pixels_under_it():
    regions = np.full((32, 32), Region.STROMA, dtype=np.uint8)
    regions[:8, :4] = Region.SUBTLE
    regions[8:16, :3] = Region.SUBTLE
    regions[16:24, :5] = Region.SALIENT
    regions[16:24, 5:8] = Region.SUBTLE
    mask = tumour_mask(regions)
    assert mask.shape == (32 // MASK_DOWNSAMPLE, 32 // MASK_DOWNSAMPLE)
    np.testing.assert_array_equal(mask[:, 0], [128, 0, 255, 0])
    assert not mask[:, 1:].any()


def test_nuclei_are_ordered_by_size_and_stamps_scale_with_the_scanner():
    def area_um2(kind, mpp):
        stamps = [stamp for turn in make_stamps(0, mpp)[kind] for stamp in turn]
        return np.mean([(stamp > 30).sum() for stamp in stamps]) * mpp**2

    sizes = [area_um2(kind, 0.5) for kind in ("lymphocyte", "plump", "subtle", "salient")]
    assert sizes == sorted(sizes)
    assert sizes[2] < 2 * sizes[1]
    for kind in NUCLEI:
        assert area_um2(kind, 0.46) == pytest.approx(area_um2(kind, 0.5), rel=0.12)


def test_layout_keeps_tumour_in_tissue_and_clear_of_other_structures():
    config = SynthConfig(width_um=1000, height_um=1000, seed=5)
    plan = next(plan for plan in plan_cohort(config) if "salient" in plan.kinds)
    layout = lay_out(config, plan)
    canvas = Canvas((1000, 1000), 1.0)
    canvas.regions[:] = Region.STROMA
    for shape in layout.shapes:
        canvas.mark(shape.outline_um, shape.region)
    for shape in layout.shapes:
        if shape.region in (Region.SALIENT, Region.SUBTLE):
            corners = shape.outline_um.round().astype(int)
            assert (layout.tissue[corners[:, 1] // 8, corners[:, 0] // 8] > 0).all()
            inner = inset(shape.outline_um, 3)
            assert (canvas.region_at(inner) == shape.region).all()
    tissue_share = float((layout.tissue > 0).mean())
    assert config.tissue_fraction_min - 0.01 <= tissue_share <= config.tissue_fraction_max + 0.01
    assert np.isfinite(fibre_angle(layout, np.array([[500.0, 500.0]]))).all()
