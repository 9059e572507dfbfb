"""Runtimes: what is chosen, how near their features are, what is cached, threads; OpenVINO and ONNX where installed."""

import json
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from mhim.encoders import encoders
from mhim.encoders.backends import cache as cache_module
from mhim.encoders.backends import choice as choice_module
from mhim.encoders.backends import choose
from mhim.encoders.backends.cache import cache_folder, cached
from mhim.encoders.backends.graph import TileGraph
from mhim.encoders.backends.probe import centred_cosine, probe_tiles
from mhim.encoders.network import fit_tiles
from mhim.errors import ArtefactError, ConfigError
from small_networks import resnet_file, vit_file

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")
quiet = pytest.mark.filterwarnings("ignore")
BACKENDS = [
    pytest.param("openvino", marks=[needs_openvino, quiet]),
    pytest.param("onnxruntime", marks=[needs_onnx, quiet]),
]


@pytest.fixture(scope="module")
def tiles():
    return probe_tiles(6, 64, 64, seed=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {"vit": vit_file(folder), "resnet50": resnet_file(folder)}


def build(name, files, **options):
    given = {"weights": files[name]} if name in files else {}
    return encoders.build(encoders.parse({"name": name, **given, **options}))


def test_the_default_is_torch_in_float32():
    """Nothing asked for: the same on every machine, whatever is installed."""
    assert choose("x", "auto", "auto", "cpu") == ("torch", "float32")
    assert choose("x", "auto", "bfloat16", "cuda") == ("torch", "bfloat16")


def test_what_is_chosen_with_openvino(monkeypatch):
    """OpenVINO is bfloat16 unless told; a narrow precision on a CPU goes to it."""
    monkeypatch.setattr(choice_module, "_is_there", lambda package: True)
    monkeypatch.setattr(choice_module, "_has_bfloat16", lambda: True)
    assert choose("x", "openvino", "auto", "cpu") == ("openvino", "bfloat16")
    assert choose("x", "auto", "bfloat16", "cpu") == ("openvino", "bfloat16")
    assert choose("x", "auto", "int8", "cpu") == ("openvino", "int8")
    assert choose("x", "onnxruntime", "auto", "cpu") == ("onnxruntime", "float32")
    monkeypatch.setattr(choice_module, "_has_bfloat16", lambda: False)
    assert choose("x", "openvino", "auto", "cpu") == ("openvino", "float32")
    with pytest.raises(ConfigError, match="no bfloat16 instructions"):
        choose("x", "openvino", "bfloat16", "cpu")


@pytest.mark.parametrize(
    ("backend", "precision", "device", "message"),
    [
        ("openvino", "auto", "cpu", r"x: backend needs openvino.*pip install 'mhim\[openvino\]'"),
        ("onnxruntime", "auto", "cpu", r"pip install 'mhim\[onnx\]'"),
        ("auto", "int8", "cpu", r"x: int8 needs openvino"),
        ("torch", "int8", "cpu", r"int8 needs --backend openvino"),
        ("auto", "int8", "cuda", r"int8 needs --backend openvino on a CPU"),
    ],
)
def test_what_cannot_be_had(backend, precision, device, message, monkeypatch):
    """One line with the extra to install or the option to change."""
    monkeypatch.setattr(choice_module, "_is_there", lambda package: False)
    with pytest.raises(ConfigError, match=message):
        choose("x", backend, precision, device)


def test_int8_needs_real_tiles(monkeypatch, tmp_path):
    """Without tiles, or with too few or other ones, int8 is refused in one line."""
    monkeypatch.setattr(choice_module, "_is_there", lambda package: True)
    with pytest.raises(ConfigError, match=r"calibrated on real tiles.*--set encoder.calibration=tiles.npy"):
        build("efficientnet-lite0", {}, precision="int8")
    path = tmp_path / "c.npy"
    for tiles, message in (
        (np.zeros((4, 8, 8, 3), np.uint8), "4 calibration tiles; at least 24"),
        (np.zeros((30, 8, 8, 3)), "must be an array"),
        (None, "cannot be read"),
    ):
        path.write_bytes(b"") if tiles is None else np.save(path, tiles)
        with pytest.raises(ConfigError, match=message):
            build("efficientnet-lite0", {}, precision="int8", calibration=path)


def test_short_names_of_precisions():
    """fp32 and bf16 are what they are called elsewhere."""
    for short, name in (("fp32", "float32"), ("bf16", "bfloat16")):
        config = encoders.parse({"name": "efficientnet-lite0", "precision": short})
        assert config.model_dump()["precision"] == name
    with pytest.raises(ConfigError, match="precision: Input should be 'auto', 'float32'"):
        encoders.parse({"name": "efficientnet-lite0", "precision": "fp8"})


@pytest.mark.parametrize("name", ["efficientnet-lite0-mid", "vit"])
def test_bfloat16_deviates_little(name, files):
    """Centred cosine to float32, recorded in the attributes and written into the cache."""
    encoder = build(name, files, backend="torch", precision="bf16")
    side = encoder.input_px or encoder.tile_px
    seen = probe_tiles(8, side, side, seed=1)
    cosine = centred_cosine(build(name, files).encode(seen), encoder.encode(seen))
    assert cosine.mean() >= 0.995
    assert encoder.attributes()["precision"] == "bfloat16"
    said = f"centred cosine {cosine.min():.4f} min, {cosine.mean():.4f} mean, 8 made-up tiles"
    assert encoder.attributes()["deviation"] == said
    measured = [json.loads(path.read_text()) for path in (cache_folder() / "deviation").glob("*/deviation.json")]
    assert {"min": round(float(cosine.min()), 4), "mean": round(float(cosine.mean()), 4)} in measured
    assert build(name, files).deviation == "none"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["efficientnet-lite0-mid", "vit", "resnet50"])
def test_another_runtime_in_float32_is_the_same(name, backend, files, tiles):
    """The same features up to rounding, whatever the batch size and the tile side."""
    encoder, expected = build(name, files, backend=backend, precision="fp32"), build(name, files)
    for batch in (tiles, tiles[:1]):
        found, wanted = encoder.encode(batch), expected.encode(batch)
        np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max(), rtol=1e-3)
    assert encoder.attributes()["backend"] == backend


@needs_openvino
@quiet
@pytest.mark.parametrize("name", ["efficientnet-lite0-mid", "vit", "resnet50"])
def test_openvino_in_bfloat16(name, files, tiles):
    """Its default precision: near to float32, and the same at every call."""
    encoder = build(name, files, backend="openvino")
    if encoder.precision != "bfloat16":
        pytest.skip("this processor has no bfloat16 instructions")
    found = encoder.encode(tiles)
    assert centred_cosine(build(name, files).encode(tiles), found).mean() >= 0.99
    np.testing.assert_array_equal(encoder.encode(tiles), found)
    again = build(name, files, backend="openvino")
    np.testing.assert_array_equal(again.encode(tiles), found)


@pytest.mark.skipif(find_spec("nncf") is None, reason="needs the extra openvino")
@quiet
def test_int8_is_calibrated_on_given_tiles(files, tmp_path, tiles):
    """By choice: other calibration tiles make another graph, the same ones the same."""
    np.save(tmp_path / "c.npy", probe_tiles(24, 64, 64, seed=9))
    wanted = build("resnet50", files).encode(tiles)
    first = build("resnet50", files, precision="int8", calibration=tmp_path / "c.npy")
    assert (first.backend, first.precision) == ("openvino", "int8")
    found = first.encode(tiles)
    assert centred_cosine(wanted, found).mean() >= 0.9
    assert "8 of the calibration's tiles" in first.deviation
    np.testing.assert_array_equal(
        build("resnet50", files, precision="int8", calibration=tmp_path / "c.npy").encode(tiles), found
    )


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_threads_get_their_own_answers(backend, files):
    """Several threads at once get what one gets."""
    encoder = build("vit", files, backend=backend, precision="fp32")
    batches = [probe_tiles(3, 32, 32, seed) for seed in range(6)]
    alone = [encoder.encode(batch) for batch in batches]
    found: list = [None] * len(batches)

    def work(index):
        for _ in range(5):
            found[index] = encoder.encode(batches[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@needs_onnx
@quiet
@pytest.mark.parametrize("layout", ["first", "last", "pixels"])
def test_an_onnx_file(layout, files, tiles, tmp_path):
    """``onnx:FILE`` with channels first or last and our normalisation, or with pixels as they are."""
    expected = build("vit", files)
    network = expected.graph.module.network if layout == "first" else expected.graph.module
    example = torch.zeros(2, 3, 32, 32) if layout == "first" else torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    if layout == "last":
        network, example = TileGraph(network.network, [0, 0, 0], [1, 1, 1]), torch.zeros(2, 32, 32, 3)
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (example,), str(path), dynamic_axes={"x": {0: "n"}}, input_names=["x"], dynamo=False)
    encoder = encoders.build(encoders.parse(f"onnx:{path}"))
    assert encoder.dim == 48
    np.testing.assert_allclose(encoder.encode(tiles), expected.encode(tiles), atol=1e-3, rtol=1e-3)
    assert encoder.attributes()["backend"] == "onnxruntime"


def test_an_onnx_file_without_the_runtime(monkeypatch, tmp_path):
    """The extra to install is named."""
    monkeypatch.setattr("mhim.encoders.onnx_file.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mhim\[onnx\]'"):
        encoders.build(encoders.parse(f"onnx:{tmp_path / 'a.onnx'}"))


def test_timm_without_timm(monkeypatch):
    """The extra to install is named."""
    monkeypatch.setattr("mhim.encoders.timm_models.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"timm is not installed; pip install 'mhim\[timm\]'"):
        encoders.build(encoders.parse("timm:vit_tiny_patch16_224"))
    with pytest.raises(ConfigError, match="unknown encoder 'tim:vit'"):
        encoders.parse("tim:vit")


def test_an_entry_of_the_cache_is_whole_or_absent(tmp_path):
    """A maker that fails leaves nothing; one that is overtaken uses the other's; content is made once."""

    def fail(folder):
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached("kind", 1, fail, tmp_path)
    assert list((tmp_path / "kind").iterdir()) == []

    def overtaken(folder):
        (folder / "mine").touch()
        cached("kind", 1, lambda inner: (inner / "theirs").touch(), tmp_path)

    entry = cached("kind", 1, overtaken, tmp_path)
    assert [path.name for path in entry.iterdir()] == ["theirs"]
    assert cached("kind", 1, fail, tmp_path) == entry
    assert [path.name for path in (tmp_path / "kind").iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written(tmp_path):
    """One line that names the variable."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="name another folder in MHIM_CACHE"):
        cached("kind", 1, lambda folder: None, tmp_path / "file")


def test_where_the_cache_is(monkeypatch, tmp_path):
    """The variable, else the system's folder."""
    monkeypatch.setenv("MHIM_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MHIM_CACHE")
    monkeypatch.setattr(cache_module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mhim"


def test_probe_tiles_look_stained():
    """The same for a seed; neither blank nor saturated; no two alike."""
    tiles = probe_tiles(4, 64, 48, seed=2)
    np.testing.assert_array_equal(tiles, probe_tiles(4, 64, 48, seed=2))
    assert tiles.shape == (4, 64, 48, 3)
    assert 60 < tiles.mean() < 240
    assert (tiles[..., 1] < tiles[..., 0]).mean() > 0.5  # eosin and haematoxylin take out green
    assert len({tile.tobytes() for tile in tiles}) == 4


def test_centred_cosine():
    """A common part does not flatter; rows that agree give 1, opposite ones -1."""
    a = np.array([[101.0, 100], [99, 100]], dtype=np.float32)
    np.testing.assert_allclose(centred_cosine(a, a), 1)
    np.testing.assert_allclose(centred_cosine(a, a[::-1]), -1)
    flat = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(centred_cosine(flat, flat), 1)


def test_fitting_tiles():
    """Resize equals Pillow's within 2 of 255; crop takes the middle; what fits is not touched."""
    from PIL import Image

    tiles = probe_tiles(2, 256, 256)
    for kind in ("bilinear", "bicubic"):
        found = fit_tiles(tiles, 224, "resize", kind, "x")
        wanted = np.array(Image.fromarray(tiles[1]).resize((224, 224), getattr(Image.Resampling, kind.upper())))
        assert np.abs(found[1].astype(int) - wanted).max() <= 2
    np.testing.assert_array_equal(fit_tiles(tiles, 224, "crop", "bicubic", "x"), tiles[:, 16:240, 16:240])
    assert fit_tiles(tiles, 256, "resize", "bicubic", "x") is tiles
    with pytest.raises(ConfigError, match="tiles of 256 px are too small; at least 300 px"):
        fit_tiles(tiles, 300, "crop", "bicubic", "x")


@quiet
def test_bfloat16_on_real_patches(shared):
    """Real stained patches: the mean of the head loses less than half a percent of direction."""
    import csv
    import io
    import zipfile

    from PIL import Image

    folder = shared / "data" / "idc_breast_dev"
    with (folder / "patches_dev.csv").open() as handle:
        rows = list(csv.DictReader(handle))[::200][:24]
    with zipfile.ZipFile(folder / "patches_dev.zip") as archive:
        names = {name.rsplit("/", 1)[-1]: name for name in archive.namelist()}
        pictures = [archive.read(names[row["file"].rsplit("/", 1)[-1]]) for row in rows]
    small = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    tiles = np.stack([np.array(picture.resize((96, 96), Image.Resampling.BICUBIC)) for picture in small])
    exact = build("efficientnet-lite0", {}).encode(tiles)
    narrow = build("efficientnet-lite0", {}, backend="torch", precision="bf16").encode(tiles)
    cosine = centred_cosine(exact, narrow)
    assert cosine.mean() >= 0.995
    assert cosine.min() >= 0.98  # a tile near the mean of all has little direction to lose
    if find_spec("openvino") is not None and choice_module._has_bfloat16():
        other = build("efficientnet-lite0", {}, backend="openvino", precision="bf16").encode(tiles)
        assert centred_cosine(exact, other).mean() >= 0.995
