"""A bag in the making: whatever moment it is cut off at, going on gives the same bytes as never having stopped."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mhim.partial_bag as partial_bag
from mhim.bag import CHUNK_ROWS, Bag, load_bag, read_attributes
from mhim.errors import ArtefactError, FeatureError
from mhim.partial_bag import BagPlan, PartialBag

TILES, WIDTH = 3 * CHUNK_ROWS + 100, 6
FEATURES = np.random.default_rng(0).normal(size=(TILES, WIDTH)).astype(np.float16)
CORNERS = np.arange(2 * TILES, dtype=np.int64).reshape(TILES, 2)
TRUTH = np.linspace(0, 1, TILES, dtype=np.float32)


def a_plan(encoder: str = "test") -> BagPlan:
    attributes = {"encoder": encoder, "mpp": 0.5, "failed_count": 0}
    return BagPlan(Bag("a", np.zeros((0, 0)), CORNERS, attributes, TRUTH), WIDTH, "float16")


def go_on(bag: PartialBag, chunks: int | None = None, failed: dict[int, str] | None = None) -> None:
    """Put the rows that are missing, 100 at a time, and write the next ``chunks`` chunks."""
    rows, written = bag.pending_rows(), 0
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        for chunk in bag.put(part, FEATURES[part], failed or {}):
            if chunks is not None and written == chunks:
                return
            bag.write(chunk)
            written += 1


def made(path: Path, failed: dict[int, str] | None = None) -> bytes:
    """The bytes of a bag that was made without interruption."""
    bag = PartialBag(path, a_plan())
    go_on(bag, failed=failed)
    bag.finish()
    return path.read_bytes()


def test_a_whole_bag_is_an_ordinary_one(tmp_path: Path) -> None:
    made(tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    bag = load_bag(tmp_path / "a.h5")
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.xy_px0, CORNERS)
    np.testing.assert_array_equal(bag.annotation_fraction, TRUTH)
    assert bag.attributes["encoder"] == "test"
    with h5py.File(tmp_path / "a.h5") as file:
        stored = file["features"]
        assert isinstance(stored, h5py.Dataset)
        assert (stored.chunks, stored.compression, (stored.id.get_offset() or 1) % 64) == (None, None, 0)


@pytest.mark.parametrize("tiles", [1, 7, CHUNK_ROWS, CHUNK_ROWS + 1])
def test_any_number_of_tiles(tiles: int, tmp_path: Path) -> None:
    plan = BagPlan(Bag("a", np.zeros((0, 0)), CORNERS[:tiles], {}), WIDTH, "float32")
    bag = PartialBag(tmp_path / "a.h5", plan)
    for chunk in bag.put(np.arange(tiles), FEATURES[:tiles].astype(np.float32), {}):
        bag.write(chunk)
    bag.finish()
    np.testing.assert_array_equal(load_bag(tmp_path / "a.h5").features, FEATURES[:tiles].astype(np.float32))


@settings(deadline=None, max_examples=25)
@given(whole=st.integers(0, 4), torn=st.floats(0, 1), cut=st.integers(0, 30), with_failures=st.booleans())
def test_going_on_after_any_cut_gives_the_same_bytes(
    whole: int, torn: float, cut: int, with_failures: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut off after ``whole`` chunks, in the middle of the next one's bytes and of its line in the journal."""
    folder = tmp_path_factory.mktemp("bag")
    failed = {5: "torn", CHUNK_ROWS - 1: "torn", CHUNK_ROWS: "dark", TILES - 1: "gone"} if with_failures else {}
    expected = made(folder / "expected" / "a.h5", failed)
    path = folder / "a.h5"
    bag = PartialBag(path, a_plan())
    go_on(bag, whole, failed)
    bag._release_file()
    bag._journal.close()
    if whole < 4:
        places = partial_bag._chunk_places(bag.file_path)
        with bag.file_path.open("r+b", buffering=0) as file:
            partial_bag.write_at(file, places[whole], np.ones(int(torn * CHUNK_ROWS), dtype=np.uint8))
    journal = bag.journal_path.read_bytes()
    bag.journal_path.write_bytes(journal[: len(journal) - (cut if whole else 0)])
    again = PartialBag(path, a_plan())
    assert len(again.pending_rows()) <= TILES - max(0, whole - 1 if cut else whole) * CHUNK_ROWS or whole == 4
    with pytest.raises(FeatureError, match="not marked complete"):
        read_attributes(again.file_path)
    go_on(again, failed=failed)
    again.finish()
    assert path.read_bytes() == expected


def test_a_kill_loses_one_chunk_at_most(tmp_path: Path) -> None:
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag, 2)
    bag.close()
    again = PartialBag(tmp_path / "a.h5", a_plan())
    assert again.pending_rows().tolist() == list(range(2 * CHUNK_ROWS, TILES))
    assert again.done_count == 2 * CHUNK_ROWS
    again.close()


def test_a_chunk_whose_bytes_changed_is_made_again(tmp_path: Path) -> None:
    expected = made(tmp_path / "expected.h5")
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag, 3)
    place = bag._places[1]
    bag.close()
    with bag.file_path.open("r+b") as file:
        file.seek(place + 10)
        file.write(b"\xff")
    again = PartialBag(tmp_path / "a.h5", a_plan())
    pending = again.pending_rows()
    assert pending[:CHUNK_ROWS].tolist() == list(range(CHUNK_ROWS, 2 * CHUNK_ROWS))
    go_on(again)
    again.finish()
    assert (tmp_path / "a.h5").read_bytes() == expected


def test_another_plan_and_damaged_remains_start_afresh(tmp_path: Path) -> None:
    for spoil in ("plan", "file", "journal", "nothing"):
        bag = PartialBag(tmp_path / "a.h5", a_plan("other" if spoil == "plan" else "test"))
        go_on(bag, 2)
        bag.close()
        if spoil == "file":
            bag.file_path.write_bytes(b"no HDF5")
        if spoil == "journal":
            bag.journal_path.write_bytes(b"\x00" * 50)
        again = PartialBag(tmp_path / "a.h5", a_plan())
        assert len(again.pending_rows()) == TILES - (2 * CHUNK_ROWS if spoil == "nothing" else 0)
        again.discard()
    assert not list(tmp_path.iterdir())


def test_failed_tiles_are_left_out_and_listed(tmp_path: Path) -> None:
    failed = {0: "unreadable", 700: "broken", TILES - 1: "gone"}
    made(tmp_path / "a.h5", failed)
    bag = load_bag(tmp_path / "a.h5")
    kept = np.setdiff1d(np.arange(TILES), list(failed))
    np.testing.assert_array_equal(bag.features, FEATURES[kept])
    np.testing.assert_array_equal(bag.xy_px0, CORNERS[kept])
    np.testing.assert_array_equal(bag.annotation_fraction, TRUTH[kept])
    assert bag.attributes["failed_count"] == 3
    with h5py.File(tmp_path / "a.h5") as file:
        coords, reasons = file["failed_coords"], file["failed_reason"]
        assert isinstance(coords, h5py.Dataset)
        assert isinstance(reasons, h5py.Dataset)
        np.testing.assert_array_equal(coords[()], CORNERS[list(failed)])
        assert [text.decode() for text in reasons[()]] == list(failed.values())


def test_a_bag_whose_tiles_all_failed_is_refused(tmp_path: Path) -> None:
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag, failed=dict.fromkeys(range(TILES), "black hole"))
    with pytest.raises(FeatureError, match="not one tile could be read; the first: black hole"):
        bag.finish()
    bag.discard()
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_make_the_same_bag(tmp_path: Path) -> None:
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    with pytest.raises(ArtefactError, match=r"a\.h5: another process is making it; .* --shard i/n"):
        PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag)
    bag.finish()
    PartialBag(tmp_path / "a.h5", a_plan()).discard()


def test_a_full_disk_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(tmp_path / "expected.h5")
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag, 2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(partial_bag, "write_at", full)
        with pytest.raises(ArtefactError, match=r"a\.h5: cannot be written \(No space left on device\); .* is kept"):
            go_on(bag, 1)
    bag.close()
    again = PartialBag(tmp_path / "a.h5", a_plan())
    assert again.done_count == 2 * CHUNK_ROWS
    go_on(again)
    again.finish()
    assert (tmp_path / "a.h5").read_bytes() == expected


@pytest.mark.parametrize("failed", [{}, {3: "torn"}], ids=["whole", "with a failed tile"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_cut_while_finishing_loses_nothing(
    step: str, failed: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = made(tmp_path / "expected.h5", failed)
    bag = PartialBag(tmp_path / "a.h5", a_plan())
    go_on(bag, failed=failed)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "refused")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if step == "fsync" else "pathlib.Path.replace", refuse)
        with pytest.raises(ArtefactError, match="refused"):
            bag.finish()
    bag.close()
    assert not (tmp_path / "a.h5").exists()
    shutil.copy(bag.file_path, tmp_path / "copy")
    again = PartialBag(tmp_path / "a.h5", a_plan())
    assert not len(again.pending_rows())
    again.finish()
    assert (tmp_path / "a.h5").read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "copy", "expected.h5"]
