"""Encoding: the right pixels in the right order, whatever the workers; bad input fails its slide alone."""

import os
import signal
import threading

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mhim.bag import load_bag, read_attributes
from mhim.cli import app
from mhim.cohort import read_slides
from mhim.config import ComponentConfig
from mhim.encode import EncodeConfig, encode_grids, resolve_device
from mhim.encoders import Encoder, encoders
from mhim.errors import ArtefactError, ConfigError, SlideError
from mhim.pool import WorkerPool
from mhim.slides import open_slide
from mhim.tile_io import load_grid
from mhim.tiles import TileConfig, TileSpec
from mhim.tiling import tile_slides
from mhim.tissue import TissueConfig
from slide_files import stained, write_tiff

COLOUR = EncodeConfig(encoder=encoders.parse("colour"), storage="float32")
TILES = TileConfig(tiles=TileSpec(mpp=1.0, size_px=16), tissue=TissueConfig(mpp=2.0, min_tissue_um2=100))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with slides/ and tiles/ of two slides, one of them with more tiles than one read."""
    folder = tmp_path_factory.mktemp("encode")
    (folder / "slides").mkdir()
    write_tiff(folder / "slides" / "a.tif", stained(300, 200, (20, 20, 280, 180)), 1.0)
    write_tiff(folder / "slides" / "b.tif", stained(300, 200, (20, 20, 200, 180), seed=1), 0.5)
    result = tile_slides(read_slides(folder / "slides"), folder / "tiles", TILES)
    assert result.done == ["a", "b"]
    return folder


def test_features_are_those_of_the_tiles(made, tmp_path):
    """Row i is the encoder's answer to the tile at corner i, read straight from the slide."""
    assert encode_grids(made / "tiles", tmp_path, COLOUR).done == ["a", "b"]
    bag, grid = load_bag(tmp_path / "a.h5"), load_grid(made / "tiles" / "a.h5")
    assert len(bag) > 64
    np.testing.assert_array_equal(bag.xy_px0, grid.xy_px0)
    encoder = encoders.build(encoders.parse("colour"))
    with open_slide(made / "slides" / "a.tif") as slide:
        for index in (0, 33, len(bag) - 1):
            x, y = grid.xy_px0[index].tolist()
            tile = slide.read((x, y), (16, 16), 1.0, "parity")
            np.testing.assert_allclose(bag.features[index], encoder.encode(tile[None])[0], atol=1e-6)


def test_workers_do_not_change_features(made, tmp_path):
    """No worker and two workers give the same bytes."""
    for workers in (0, 2):
        encode_grids(made / "tiles", tmp_path / str(workers), COLOUR, workers)
    for name in ("a.h5", "b.h5"):
        alone, two = (load_bag(tmp_path / workers / name) for workers in "02")
        np.testing.assert_array_equal(alone.features, two.features)
        np.testing.assert_array_equal(alone.xy_px0, two.xy_px0)


def test_attributes_say_how_it_was_made(made, tmp_path):
    """Scale, slide, encoder, transform and fingerprints are in the file; truth is copied."""
    encode_grids(made / "tiles", tmp_path, COLOUR)
    attributes, grid = read_attributes(tmp_path / "b.h5"), read_attributes(made / "tiles" / "b.h5")
    for key in ("mpp", "slide_mpp", "tile_size_px", "tile_size_level0", "level0_width", "tissue_mask_id", "slide_path"):
        assert attributes[key] == grid[key]
    assert attributes["encoder"] == "colour"
    assert attributes["encoder_weights_sha256"] == "none"
    assert "antialiased bicubic" in attributes["transform"]
    assert attributes["complete"]


def test_annotation_fraction_is_copied(made, tmp_path):
    """Instance truth goes from grid to bag unchanged."""
    import shutil

    (tmp_path / "tiles").mkdir()
    path = shutil.copy(made / "tiles" / "a.h5", tmp_path / "tiles")
    with h5py.File(path, "a") as file:
        truth = np.linspace(0, 1, len(file["coords"]), dtype=np.float32)
        file["annotation_fraction"] = truth
    encode_grids(tmp_path / "tiles", tmp_path / "out", COLOUR)
    np.testing.assert_array_equal(load_bag(tmp_path / "out" / "a.h5").annotation_fraction, truth)


def test_rerun_skips_and_a_change_is_refused(made, tmp_path):
    """Same configuration: skipped, also with another batch size. Another storage: refused, replaced on request."""
    assert encode_grids(made / "tiles", tmp_path, COLOUR).done == ["a", "b"]
    same = EncodeConfig(encoder=encoders.parse("colour"), storage="float32", batch_size=5)
    assert encode_grids(made / "tiles", tmp_path, same).skipped == ["a", "b"]
    other = EncodeConfig(encoder=encoders.parse("colour"), storage="float16")
    refused = encode_grids(made / "tiles", tmp_path, other)
    assert "was made by another configuration" in refused.failed["a"]
    assert "give another --out, or --overwrite" in refused.failed["a"]
    assert encode_grids(made / "tiles", tmp_path, other, overwrite=True).done == ["a", "b"]
    assert load_bag(tmp_path / "a.h5").features.dtype == np.float16


def test_a_tile_that_cannot_be_read_fails_its_slide(made, tmp_path):
    """Damaged pixels: the slide fails with the position, no file is written, the other slide is done."""
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        data = bytearray((made / "slides" / f"{name}.tif").read_bytes())
        (tmp_path / "slides" / f"{name}.tif").write_bytes(bytes(data))
    tile_slides(read_slides(tmp_path / "slides"), tmp_path / "tiles", TILES)
    data = bytearray((tmp_path / "slides" / "a.tif").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / "slides" / "a.tif").write_bytes(bytes(data))
    result = encode_grids(tmp_path / "tiles", tmp_path / "out", COLOUR, workers=1)
    assert result.done == ["b"]
    assert "a.tif: cannot read the region at x " in result.failed["a"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.h5"]


def test_missing_and_changed_slides(made, tmp_path):
    """A slide that went away or is not the one that was tiled fails with its name."""
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        (tmp_path / "slides" / f"{name}.tif").write_bytes((made / "slides" / f"{name}.tif").read_bytes())
    tile_slides(read_slides(tmp_path / "slides"), tmp_path / "tiles", TILES)
    (tmp_path / "slides" / "a.tif").unlink()
    write_tiff(tmp_path / "slides" / "b.tif", stained(310, 200, (20, 20, 200, 180)), 0.5)
    failed = encode_grids(tmp_path / "tiles", tmp_path / "out", COLOUR).failed
    assert "a.tif: no such slide file" in failed["a"]
    assert "not the slide that was tiled" in failed["b"]


def _die(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_dies_is_an_error_and_the_pool_lives_on():
    """The slide gets a clear error; the same pool then serves the next one, in order."""
    with WorkerPool(1) as pool:
        with pytest.raises(SlideError, match="a worker process died while reading this slide"):
            pool.alone(_die, 2)
        assert pool.alone(_die, 3) == 30


def test_interrupt_passes_through(made, tmp_path, monkeypatch):
    """Ctrl-C leaves nothing that reads as complete, no thread, and the next run does the work."""
    threads = set(threading.enumerate())

    def interrupted(self, tiles):
        raise KeyboardInterrupt

    for workers in (0, 2):
        with monkeypatch.context() as patch:
            patch.setattr(encoders["colour"], "encode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                encode_grids(made / "tiles", tmp_path, COLOUR, workers)
        assert not list(tmp_path.iterdir())
        for thread in set(threading.enumerate()) - threads:  # the progress bar's ends a moment later by itself
            thread.join(timeout=30)
            assert not thread.is_alive(), thread.name
    assert encode_grids(made / "tiles", tmp_path, COLOUR).done == ["a", "b"]


def test_no_grids(made, tmp_path):
    """Nothing to do, and features over grids, are refused with the fix."""
    with pytest.raises(ArtefactError, match="no such folder; make it with mhim tile"):
        encode_grids(tmp_path / "none", tmp_path, COLOUR)
    with pytest.raises(ArtefactError, match="no grid files"):
        encode_grids(tmp_path, tmp_path / "out", COLOUR)
    with pytest.raises(ArtefactError, match="features would replace the grids"):
        encode_grids(made / "tiles", made / "tiles", COLOUR)


def test_devices():
    """Auto finds a device; one that is not there is refused with the fix."""
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto") == expected
    with pytest.raises(ConfigError, match="device 'warp' cannot be used"):
        resolve_device("warp")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_verb(made, tmp_path):
    """The verb writes bags, tells the plan without writing, and refuses an option of another encoder."""
    words = ("encode", made / "tiles", "-o", tmp_path / "out", "-j", 0)
    plan = run(*words, "--encoder", "colour", "--dry-run")
    assert plan.exit_code == 0
    assert "would encode 2 slides" in " ".join(plan.stderr.split())
    assert not (tmp_path / "out").exists()
    assert run(*words, "--encoder", "colour", "--batch-size", 16).exit_code == 0
    assert load_bag(tmp_path / "out" / "a.h5").features.dtype == np.float16
    conflict = run(*words, "--encoder", "colour", "--set", "storage=float32")
    assert conflict.exit_code == 1
    assert "--overwrite" in conflict.stderr
    with pytest.raises(ConfigError, match=r"unknown key 'precision'"):
        run(*words, "--encoder", "colour", "--precision", "bfloat16")


def test_verb_takes_a_plugin_and_a_file(made, tmp_path):
    """An encoder from the user's own file is used by name, with options from YAML."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from mhim.config import ComponentConfig\n"
        "from mhim.encoders import Encoder, encoders\n"
        "@encoders.register('mean-colour')\n"
        "class MeanColour(Encoder):\n"
        "    class Config(ComponentConfig):\n"
        "        gain: float = 1.0\n"
        "    dim = 3\n"
        "    def encode(self, tiles):\n"
        "        return (tiles.mean(axis=(1, 2)) * self.config.gain).astype(np.float32)\n"
    )
    (tmp_path / "encode.yaml").write_text("encoder: {name: mean-colour, gain: 0.5}\nstorage: float32\n")
    words = ("encode", made / "tiles", "-o", tmp_path / "out", "-j", 0, "--plugin", tmp_path / "mine.py")
    assert run(*words, "--config", tmp_path / "encode.yaml").exit_code == 0
    bag = load_bag(tmp_path / "out" / "a.h5")
    with open_slide(made / "slides" / "a.tif") as slide:
        tile = slide.read(tuple(bag.xy_px0[5].tolist()), (16, 16), 1.0, "parity")
    np.testing.assert_allclose(bag.features[5], tile.mean(axis=(0, 1)) / 2, rtol=1e-5)
    del encoders._classes["mean-colour"]


class _Broken(Encoder):
    Config = ComponentConfig
    dim = 2

    def encode(self, tiles):
        return np.full((len(tiles), 2), np.nan, dtype=np.float32)


def test_features_that_are_not_finite(made, tmp_path, monkeypatch):
    """An encoder that returns NaN fails the slide; nothing is stored."""
    monkeypatch.setitem(encoders._classes, "broken", _Broken)
    config = EncodeConfig(encoder=encoders.parse("broken"))
    failed = encode_grids(made / "tiles", tmp_path, config).failed
    assert "hold NaN or infinite features" in failed["a"]
    assert not list(tmp_path.iterdir())
