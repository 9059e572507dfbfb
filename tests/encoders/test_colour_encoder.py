"""Colour statistics: closed forms on flat, striped and two-colour tiles."""

import numpy as np
import pytest

from mhim.encoders import encoders
from mhim.encoders.colour import UNMIX, optical_density, pattern_histogram


@pytest.fixture(scope="module")
def encode():
    return encoders.build(encoders.parse("colour")).encode


def test_optical_density_of_tenths():
    """White absorbs nothing; a level of 24.6 of 256 is one decade."""
    density = optical_density(np.array([[[255, 127, 15]]], dtype=np.uint8))
    np.testing.assert_allclose(density[0, 0], [0, np.log10(2), np.log10(16)], rtol=1e-6)


def test_unmixing_recovers_the_stains():
    """A mixture of the two stain vectors comes back as its two amounts and no residual."""
    stains = np.linalg.inv(UNMIX)
    np.testing.assert_allclose((np.array([0.7, 0.2, 0.0]) @ stains) @ UNMIX, [0.7, 0.2, 0], atol=1e-6)


def test_flat_tile(encode):
    """A flat tile has no spread, no gradient, no correlation, and flat patterns only."""
    features = encode(np.full((1, 32, 32, 3), 200, dtype=np.uint8))[0]
    mean_h, std_h, *quantiles = features[:7]
    np.testing.assert_allclose([std_h, *np.subtract(quantiles, mean_h)], 0, atol=1e-5)
    correlation, (red, _, green, _, blue, _), white = features[16], features[17:23], features[23]
    assert correlation == 0
    np.testing.assert_allclose([red, green, blue], 200 / 255, rtol=1e-5)
    assert white == 0
    np.testing.assert_allclose(features[24:36], 0, atol=1e-5)
    np.testing.assert_array_equal(features[36:], ([1] + [0] * 9) * 2)


def test_share_of_white(encode):
    """A quarter of near-white pixels is counted as a quarter."""
    tile = np.full((1, 32, 32, 3), 120, dtype=np.uint8)
    tile[:, :16, :16] = 240
    assert encode(tile)[0, 23] == pytest.approx(0.25)


def test_statistics_do_not_depend_on_orientation(encode):
    """Turning or mirroring a tile changes nothing: every statistic is over all directions."""
    tile = np.random.default_rng(0).integers(90, 250, (1, 32, 32, 3), dtype=np.uint8)
    for turned in (np.rot90(tile, axes=(1, 2)), tile[:, ::-1]):
        np.testing.assert_allclose(encode(np.ascontiguousarray(turned)), encode(tile), atol=2e-5)


def test_patterns_of_a_step():
    """Left of a vertical step three neighbours in one arc are brighter, elsewhere none."""
    image = np.zeros((1, 10, 12), dtype=np.float32)
    image[:, :, 6:] = 1
    shares = pattern_histogram(image)[0]
    expected = np.zeros(10)
    expected[3], expected[0] = 0.1, 0.9
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_patterns_of_a_dark_point():
    """A single dark pixel sees eight brighter neighbours; each pattern histogram sums to one."""
    image = np.ones((1, 5, 5), dtype=np.float32)
    image[0, 2, 2] = 0
    shares = pattern_histogram(image)[0]
    assert shares[8] == pytest.approx(1 / 9)
    assert shares.sum() == pytest.approx(1)
