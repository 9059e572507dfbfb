"""mhim info: what a file is, readable and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mhim.artefacts import write_json
from mhim.bag import CHUNK_ROWS, Bag, save_bag
from mhim.cli import app
from mhim.errors import ArtefactError, FeatureError
from mhim.partial_bag import BagPlan, PartialBag
from mhim.tile_io import save_grid
from mhim.tiles import TileGrid
from mhim.tissue import TissueMask


def info(path: Path) -> tuple[dict[str, Any], str]:
    """What the verb says of a path, as JSON and as text."""
    asked = [CliRunner().invoke(app, ["info", str(path), *more], catch_exceptions=False) for more in (["--json"], [])]
    assert [one.exit_code for one in asked] == [0, 0]
    return json.loads(asked[0].stdout), asked[1].stdout


def a_bag(path: Path, failed: dict[int, str], chunks: int | None = None, tiles: int = 2 * CHUNK_ROWS) -> None:
    """Make a bag through its partial file; stop after ``chunks`` chunks."""
    xy_px0 = np.arange(2 * tiles).reshape(tiles, 2)
    frame = Bag(path.stem, np.zeros((0, 0)), xy_px0, {"encoder": "test", "mpp": 0.5, "tile_count": tiles})
    bag = PartialBag(path, BagPlan(frame, 3, "float16"))
    for chunk in bag.put(np.arange(tiles), np.ones((tiles, 3), dtype=np.float16), failed):
        if chunks is None or chunk.index < chunks:
            bag.write(chunk)
    bag.finish() if chunks is None else bag.close()


def test_a_bag_with_its_failed_tiles(tmp_path: Path) -> None:
    a_bag(tmp_path / "a.h5", {7: "torn strip"})
    facts, text = info(tmp_path / "a.h5")
    assert (facts["kind"], facts["complete"], facts["tiles"]) == ("bag", True, 2 * CHUNK_ROWS - 1)
    assert facts["datasets"]["features"] == {"shape": [1023, 3], "dtype": "float16", "chunk": None}
    assert facts["attributes"]["encoder"] == "test"
    assert facts["attributes"]["failed_count"] == 1
    assert facts["failed"] == [{"xy_px0": [14, 15], "reason": "torn strip"}]
    assert f"{tmp_path / 'a.h5'}: bag\n" in text
    assert "features                 1023 x 3 float16" in text
    assert "failed at (14, 15): torn strip" in text


def test_an_unfinished_bag_by_either_name(tmp_path: Path) -> None:
    a_bag(tmp_path / "a.h5", {}, chunks=1)
    for name in ("a.h5", ".a.h5.partial"):
        facts, text = info(tmp_path / name)
        assert (facts["kind"], facts["complete"], facts["tiles"]) == ("unfinished bag", False, 2 * CHUNK_ROWS)
        assert (facts["chunks_done"], facts["chunks"]) == (1, 2)
        assert "unfinished bag, not complete" in text


def test_a_grid(tmp_path: Path) -> None:
    tissue = TissueMask(np.ones((2, 3), dtype=bool), (4.0, 4.0), 8.0)
    save_grid(tmp_path / "a.h5", TileGrid("a", np.zeros((5, 2), dtype=np.int64), tissue, {"mpp": 0.5}))
    facts, _ = info(tmp_path / "a.h5")
    assert (facts["kind"], facts["tiles"], facts["attributes"]["mpp"]) == ("grid", 5, 0.5)


def test_a_folder_says_what_is_common_and_what_is_not(tmp_path: Path) -> None:
    a_bag(tmp_path / "a.h5", {7: "torn strip"})
    a_bag(tmp_path / "b.h5", {})
    a_bag(tmp_path / "c.h5", {}, chunks=1)
    save_bag(tmp_path / "d.h5", Bag("d", np.ones((4, 3)), None, {"encoder": "other"}))
    facts, text = info(tmp_path)
    assert (facts["kind"], facts["files"], facts["complete"], facts["tiles"]) == (
        "folder of bags",
        3,
        3,
        1023 + 1024 + 4,
    )
    assert facts["failed_tiles"] == {"a": 1}
    assert facts["unfinished"] == ["c"]
    assert facts["attributes"]["encoder"] == {"test": 2, "other": 1}
    assert facts["attributes"]["mpp"] == {"0.5": 2, "not said": 1}
    assert "test: 2, other: 1" in text


def test_a_run_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"title": "abmil", "n_folds": 2, "classes": ["normal", "tumour"]})
    write_json(tmp_path / "fold_0" / "fold.json", {"best_epoch": 3})
    facts, text = info(tmp_path)
    assert (facts["kind"], facts["folds_done"], facts["complete"]) == ("run", 1, False)
    write_json(tmp_path / "fold_1" / "fold.json", {"best_epoch": 3})
    write_json(tmp_path / "metrics.json", {"fold_mean": {"auroc": {"value": 0.75}}})
    facts, text = info(tmp_path)
    assert (facts["complete"], facts["metrics"]["auroc"]["value"]) == (True, 0.75)
    assert "normal, tumour" in text
    assert "0.75  (mean over folds)" in text


def test_files_of_others_and_damaged_ones(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["feats"] = np.ones((2, 3))
        file.attrs["unit"] = np.bytes_(b"um")
    facts, _ = info(tmp_path / "foreign.h5")
    assert (facts["kind"], facts["complete"], facts["attributes"]["unit"]) == ("HDF5 file", False, "um")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "foreign.h5").read_bytes()[:600])
    (tmp_path / "empty").mkdir()
    for name, error, fault in (
        ("text.txt", ArtefactError, "neither a bag, a grid, a model nor a run folder"),
        ("none.h5", ArtefactError, "no such file or folder"),
        ("empty", ArtefactError, "neither a run folder nor a folder of bags or grids"),
        ("cut.h5", FeatureError, "not a readable HDF5 file"),
    ):
        with pytest.raises(error, match=fault):
            CliRunner().invoke(app, ["info", str(tmp_path / name)], catch_exceptions=False)
