"""Mapped bags: the same numbers as read ones, the same weights, no page of their own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cohort_files import write_cohort
from mhim.bag import Bag, load_bag, place_of_features, save_bag
from mhim.cohort import read_cohort
from mhim.convert import ConvertConfig
from mhim.errors import FeatureError
from mhim.repack import plan_repack, repack
from mhim.training.data import BagStore
from mhim.training.mapping import map_features
from small_runs import contents, small_plan, split_cohort, train_all

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")


def pages_of(path: Path) -> dict[str, int]:
    """KiB of this process's mappings of a file, by kind, from /proc/self/smaps."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if " " in key:
            inside = line.endswith(str(path))
        elif inside and rest.endswith("kB"):
            found[key] = found.get(key, 0) + int(rest.split()[0])
    return found


def a_bag(path: Path, rows: int = 2000) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float16)
    save_bag(path, Bag("a", features))
    return features


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_mapped_features_are_the_stored_ones_and_begin_where_products_do_not_differ(
    precision: str, tmp_path: Path
) -> None:
    features = np.random.default_rng(0).normal(size=(77, 5)).astype(precision)
    save_bag(tmp_path / "a.h5", Bag("a", features), precision)
    mapped = map_features(tmp_path / "a.h5")
    assert mapped is not None
    np.testing.assert_array_equal(mapped.numpy(), features)
    assert mapped.data_ptr() % 64 == load_bag(tmp_path / "a.h5").features.ctypes.data % 64 == 0


@pytest.mark.parametrize("options", [{"chunks": (10, 6)}, {"chunks": (40, 6), "compression": "gzip"}])
def test_what_does_not_lie_in_one_piece_is_read(options: dict[str, object], tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16)
    with h5py.File(tmp_path / "s00_0.h5", "w") as file:
        file.create_dataset("features", data=features, **options)
        file.attrs["complete"] = True
    assert map_features(tmp_path / "s00_0.h5") is None
    write_cohort(tmp_path / "c", n_cases=2)
    store = BagStore(tmp_path, read_cohort(tmp_path / "c" / "cohort.csv"))
    np.testing.assert_array_equal(store.features("s00_0").numpy(), features)
    assert store.features("s00_0") is store.features("s00_0")


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"none\.h5: no such file"):
        map_features(tmp_path / "none.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((0, 4)))
        file.attrs["complete"] = True
    with pytest.raises(FeatureError, match=r"a\.h5: zero instances"):
        map_features(tmp_path / "a.h5")


def test_writing_to_a_mapped_bag_never_reaches_the_file(tmp_path: Path) -> None:
    features = a_bag(tmp_path / "a.h5")
    mapped = map_features(tmp_path / "a.h5")
    assert mapped is not None
    mapped.zero_()
    np.testing.assert_array_equal(load_bag(tmp_path / "a.h5").features, features)


def test_a_bag_that_is_replaced_stays_what_it_was(tmp_path: Path) -> None:
    """Every verb replaces by renaming."""
    features = a_bag(tmp_path / "a.h5")
    mapped = map_features(tmp_path / "a.h5")
    assert mapped is not None
    save_bag(tmp_path / "a.h5", Bag("a", features + 1))
    np.testing.assert_array_equal(mapped.numpy(), features)


@LINUX
def test_many_bags_need_no_file_handles(tmp_path: Path) -> None:
    a_bag(tmp_path / "a.h5", 10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [map_features(tmp_path / "a.h5") for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(each is not None for each in kept)


@LINUX
def test_training_copies_no_page_of_a_mapped_bag(tmp_path: Path) -> None:
    """So processes that train side by side hold the features once."""
    write_cohort(tmp_path, n_cases=8)
    plan = small_plan(tmp_path, method="mhim-v1", train={"epochs": 2})
    path = tmp_path / "features" / "s01_0.h5"
    kept = map_features(path)
    assert kept is not None
    assert float(kept.sum()) != 0
    before = pages_of(path)
    assert before["Rss"] > 0
    train_all(plan, tmp_path / "run")
    after = pages_of(path)
    assert before["Private_Dirty"] == after["Private_Dirty"] == 0
    assert before["Anonymous"] == after["Anonymous"] == 0


@pytest.mark.parametrize("model", ["abmil", "transmil"])
def test_mapped_read_and_packed_bags_give_the_same_weights_to_the_bit(model: str, tmp_path: Path) -> None:
    """And the same run: where the numbers lie is no part of its identity."""
    write_cohort(tmp_path, n_cases=8, dim=40)
    split_cohort(tmp_path)
    config = ConvertConfig.model_validate({})
    repack(plan_repack(tmp_path / "features", tmp_path / "packed", config, True), config)
    options = {"abmil": {"dim": 16, "attention_dim": 8}, "transmil": {"dim": 16, "heads": 2, "landmarks": 4}}
    method = {"name": "mhim-v1", "teacher_init": "student", "student_init": "none"}
    common = {"model": {"name": model, **options[model]}, "method": method}
    ways = {
        "mapped": {},
        "read": {"train": {"map_bags": False}},
        "again": {"train": {"map_bags": False, "cache_bytes": 0}},
        "packed": {"features": str(tmp_path / "packed")},
    }
    runs = {}
    for name, changes in ways.items():
        train_all(small_plan(tmp_path, **common, **changes), tmp_path / "runs" / name)
        made = contents(tmp_path / "runs" / name)
        made.pop("config.yaml")
        runs[name] = made
    assert runs["mapped"] == runs["read"] == runs["again"] == runs["packed"]


def test_reading_ahead_changes_neither_order_nor_values(cohort_folder: Path) -> None:
    cohort = read_cohort(cohort_folder / "cohort.csv")
    cases = sorted({row.case_id for row in cohort})
    stores = [BagStore(cohort_folder / "features", cohort, mapped=mapped) for mapped in (True, False)]
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(3)).tolist()
    asked: list[str] = []
    ask = stores[0]._read_ahead.ask
    stores[0]._read_ahead.ask = lambda path: (asked.append(path.stem), ask(path))[1]
    ahead, plain = (list(store.part(cases).in_order(order)) for store in stores)
    stores[0]._read_ahead.wait()
    names = [stores[0].part(cases).names[index] for index in order]
    assert [bag.slide_id for bag in ahead] == [bag.slide_id for bag in plain] == names
    assert asked == names[1:]
    for ours, theirs in zip(ahead, plain, strict=True):
        assert torch.equal(ours.features, theirs.features)
        assert int(ours.label) == int(theirs.label)


@LINUX
def test_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A file that is dropped from the page cache is back there after asking, all of it."""
    a_bag(tmp_path / "a.h5", 200_000)
    path = tmp_path / "a.h5"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = cached_share(path)
    if before > 0.5:
        pytest.skip("this file system does not drop pages when asked")
    write_cohort(tmp_path / "c", n_cases=2)
    store = BagStore(tmp_path, read_cohort(tmp_path / "c" / "cohort.csv"))
    store.expect("a")
    store._read_ahead.wait()
    deadline = time.monotonic() + 60
    while cached_share(path) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cached_share(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    import ctypes
    import mmap

    size, page = path.stat().st_size, mmap.PAGESIZE
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as pages:
        found = (ctypes.c_ubyte * -(-size // page))()
        view = ctypes.c_char.from_buffer(pages)
        ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), found)
        del view
        return sum(each & 1 for each in found) / len(found)


def test_a_store_maps_each_bag_once(cohort_folder: Path) -> None:
    store = BagStore(cohort_folder / "features", read_cohort(cohort_folder / "cohort.csv"))
    assert store.features("s00_0") is store.features("s00_0")
    assert place_of_features(store.path("s00_0")) is not None
    assert store.bag("s00_0").features.ctypes.data == store.features("s00_0").data_ptr()
