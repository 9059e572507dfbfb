"""Packed bags: equal to the bit, refused when damaged, whole or not there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.bag import Bag, content_digest, load_bag, place_of_features, save_bag
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.cohort import read_cohort
from mhim.config import validate
from mhim.convert import convert_folder
from mhim.errors import ArtefactError, FeatureError
from mhim.foreign import ConvertConfig
from mhim.repack import plan_repack, repack
from mhim.seal import checksum
from mhim.training.data import BagStore, check_features
from mhim.training.mapping import map_features


def pack(source: Path, out: Path, keep: bool = True, overwrite: bool = False, **options: Any) -> Any:
    config = validate(ConvertConfig, options, "test")
    return repack(plan_repack(source, out, config, keep), config, keep, overwrite)


def chunked(path: Path, features: np.ndarray, **attributes: Any) -> None:
    """One row a chunk, as CLAM writes."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(1, features.shape[1]))
        file.create_dataset("coords", data=np.arange(2 * len(features)).reshape(-1, 2))
        file.attrs.update(attributes)


def test_packed_bags_are_equal_to_the_bit_and_give_the_same_fingerprint(cohort_folder: Path) -> None:
    """Every array and attribute, whatever else the file holds; so runs on either are the same run."""
    source, out = cohort_folder / "features", cohort_folder / "packed"
    with h5py.File(source / "s03_0.h5", "r+") as file:
        file["instance_kind"] = np.arange(5)
    assert len(pack(source, out).done) == 24
    for path in source.glob("*.h5"):
        before, after = load_bag(path), load_bag(out / path.name)
        mapped = map_features(out / path.name)
        assert mapped is not None
        assert mapped.numpy().tobytes() == before.features.tobytes() == after.features.tobytes()
        np.testing.assert_array_equal(before.xy_px0, after.xy_px0)  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(before.annotation_fraction, after.annotation_fraction)  # pyright: ignore[reportArgumentType]
        assert before.attributes.items() <= after.attributes.items()
        assert content_digest(before) == content_digest(after)
    with h5py.File(out / "s03_0.h5") as file:
        assert file["instance_kind"][:].tolist() == [0, 1, 2, 3, 4]  # pyright: ignore
    cohort = read_cohort(cohort_folder / "cohort.csv")
    plain, packed = (check_features(BagStore(folder, cohort))[1] for folder in (source, out))
    assert plain == packed


def test_the_stored_digest_is_that_of_the_numbers(tmp_path: Path) -> None:
    """It is taken from the file; an encoder that was corrected there since makes it void."""
    save_bag(tmp_path / "in" / "a.h5", Bag("a", np.ones((9, 4)), np.zeros((9, 2), np.int64), {"encoder": "one"}))
    pack(tmp_path / "in", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "a.h5", "r+") as file:
        file.attrs["encoder"] = "two"
    save_bag(tmp_path / "in" / "a.h5", Bag("a", np.ones((9, 4)), np.zeros((9, 2), np.int64), {"encoder": "two"}))
    assert content_digest(load_bag(tmp_path / "out" / "a.h5")) == content_digest(load_bag(tmp_path / "in" / "a.h5"))


@pytest.mark.parametrize("kind", ["h5", "pt", "npy"])
def test_other_tools_files_become_what_convert_makes_of_them(kind: str, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a.{kind}"
    if kind == "h5":
        chunked(path, features)
    elif kind == "pt":
        torch.save(torch.from_numpy(features), path)
    else:
        np.save(path, features)
    config = validate(ConvertConfig, {"encoder": "x", "mpp": 0.5}, "test")
    convert_folder(tmp_path / "in", tmp_path / "converted", config)
    pack(tmp_path / "in", tmp_path / "out", encoder="x", mpp=0.5)
    ours, theirs = (load_bag(tmp_path / folder / "a.h5") for folder in ("out", "converted"))
    assert content_digest(ours) == content_digest(theirs)
    np.testing.assert_array_equal(ours.features, features.astype(np.float16))


def test_precision_is_kept_unless_asked_for(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    save_bag(tmp_path / "in" / "a.h5", Bag("a", features), "float32")
    pack(tmp_path / "in", tmp_path / "kept")
    pack(tmp_path / "in", tmp_path / "half", keep=False, precision="float16")
    np.testing.assert_array_equal(load_bag(tmp_path / "kept" / "a.h5").features, features)
    np.testing.assert_array_equal(load_bag(tmp_path / "half" / "a.h5").features, features.astype(np.float16))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """One packed bag of 900 x 16 and its coordinates."""
    features = np.random.default_rng(1).normal(size=(900, 16))
    save_bag(tmp_path / "in" / "a.h5", Bag("a", features, np.arange(1800).reshape(-1, 2)))
    pack(tmp_path / "in", tmp_path / "out")
    return tmp_path / "out" / "a.h5"


@settings(deadline=None, max_examples=40)
@given(bit=st.integers(0, 900 * 16 * 16 - 1))
def test_one_changed_bit_is_refused_in_one_line(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bit")
    features = np.random.default_rng(1).normal(size=(900, 16))
    save_bag(folder / "in" / "a.h5", Bag("a", features))
    pack(folder / "in", folder / "out")
    path = folder / "out" / "a.h5"
    place = place_of_features(path)
    assert place is not None
    content = bytearray(path.read_bytes())
    content[place.offset + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(
        FeatureError, match=r"a\.h5: damaged or changed since it was packed .* 'mhim repack --overwrite'"
    ):
        load_bag(path)


def test_a_damaged_bag_is_refused_before_training(cohort_folder: Path) -> None:
    pack(cohort_folder / "features", cohort_folder / "packed")
    path = cohort_folder / "packed" / "s07_0.h5"
    place = place_of_features(path)
    assert place is not None
    content = bytearray(path.read_bytes())
    content[place.offset + 7] ^= 64
    path.write_bytes(content)
    for mapped in (True, False):
        store = BagStore(cohort_folder / "packed", read_cohort(cohort_folder / "cohort.csv"), mapped=mapped)
        with pytest.raises(FeatureError, match=r"s07_0\.h5: damaged or changed"):
            check_features(store)


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused_in_one_line(left: float, packed: Path) -> None:
    content = packed.read_bytes()
    packed.write_bytes(content[: int(left * len(content))])
    for read in (load_bag, map_features):
        with pytest.raises(FeatureError, match=r"a\.h5: ") as caught:
            read(packed)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(0, 3000), first=st.integers(0, 2999), second=st.integers(0, 2999))
def test_the_checksum_sees_words_that_change_places(size: int, first: int, second: int) -> None:
    values = np.random.default_rng(size).integers(0, 1 << 62, size=size)
    other = values.copy()
    if size:
        first, second = first % size, second % size
        other[[first, second]] = other[[second, first]]
    assert (checksum(values) == checksum(other)) == bool((values == other).all())


@pytest.mark.parametrize(
    "other",
    [np.zeros((4, 6)), np.zeros(24), np.zeros((6, 4), np.float32), np.zeros((6, 5)), np.full((6, 4), -0.0)],
    ids=["shape", "flat", "type", "size", "minus zero"],
)
def test_the_checksum_sees_shape_and_type(other: np.ndarray) -> None:
    assert checksum(np.zeros((6, 4))) != checksum(other)


KILLED = """
import os, signal, sys
from pathlib import Path
import h5py
import mhim.repack as repack
from mhim.foreign import ConvertConfig
write = repack.write_facts
def in_the_middle(file, bag):
    if bag.slide_id == "s01_0":
        file.flush(); os.kill(os.getpid(), signal.SIGKILL)
    write(file, bag)
repack.write_facts = in_the_middle
config = ConvertConfig()
repack.repack(repack.plan_repack(Path(sys.argv[1]), Path(sys.argv[2]), config, True), config)
"""


def test_a_killed_packing_leaves_nothing_that_reads_as_complete_and_goes_on(cohort_folder: Path) -> None:
    source, out = cohort_folder / "features", cohort_folder / "packed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in out.glob("*.h5")] == ["s00_0.h5"]
    (left,) = out.glob(".*")
    with pytest.raises(FeatureError):
        load_bag(left)
    first = (out / "s00_0.h5").stat().st_mtime_ns
    result = pack(source, out)
    assert (len(result.done), result.skipped, result.failed) == (23, ["s00_0.h5"], {})
    assert (out / "s00_0.h5").stat().st_mtime_ns == first
    pack(source, cohort_folder / "at once")
    for path in out.glob("*.h5"):
        assert path.read_bytes() == (cohort_folder / "at once" / path.name).read_bytes()


def test_other_options_or_sources_are_refused_until_overwrite(tmp_path: Path) -> None:
    save_bag(tmp_path / "in" / "a.h5", Bag("a", np.ones((3, 2))))
    pack(tmp_path / "in", tmp_path / "out")
    save_bag(tmp_path / "in" / "a.h5", Bag("a", np.zeros((3, 2))))
    assert "exists, of another source or other options" in pack(tmp_path / "in", tmp_path / "out").failed["a.h5"]
    assert load_bag(tmp_path / "out" / "a.h5").features.sum() == 6
    assert pack(tmp_path / "in", tmp_path / "out", overwrite=True).done == ["a.h5"]
    assert load_bag(tmp_path / "out" / "a.h5").features.sum() == 0
    with pytest.raises(ArtefactError, match="is the folder to pack"):
        pack(tmp_path / "out", tmp_path / "out")


def test_an_unfinished_bag_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    chunked(tmp_path / "in" / "a.h5", np.ones((3, 2), np.float32), complete=False)
    assert "not marked complete" in pack(tmp_path / "in", tmp_path / "out").failed["a.h5"]


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_bag(tmp_path / "in" / "a.h5", Bag("a", np.ones((3, 2))))
    arguments = ["mhim", "repack", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*arguments, "--dry-run"])
    assert run_app(app) == 0
    assert "would pack 1 of 1 files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for said in ("1 done, 0 already complete", "0 done, 1 already complete"):
        monkeypatch.setattr("sys.argv", arguments)
        assert run_app(app) == 0
        assert said in capsys.readouterr().err
