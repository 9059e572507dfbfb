"""The bag file: what is written is what is read, and a file that no model can use is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mhim.bag import Bag, load_bag, read_attributes, save_bag
from mhim.errors import FeatureError


def a_bag(**changes: Any) -> Bag:
    values: dict[str, Any] = {
        "slide_id": "a",
        "features": np.arange(12, dtype=np.float32).reshape(4, 3),
        "xy_px0": np.array([[0, 0], [512, 0], [0, 512], [2**40, 5]], dtype=np.int64),
        "attributes": {"encoder": "test", "mpp": 0.5, "tile_size_level0": 512.0, "tile_size_px": 256},
        "annotation_fraction": np.array([0, 0.25, 0.5, 1], dtype=np.float32),
    }
    return Bag(**(values | changes))


def rewrite(path: Path, **datasets: Any) -> Path:
    """A complete bag file with datasets replaced, or removed where None."""
    save_bag(path, a_bag())
    with h5py.File(path, "r+") as file:
        for name, values in datasets.items():
            del file[name]
            if values is not None:
                file[name] = values
    return path


@settings(deadline=None, max_examples=40)
@given(data=st.data(), precision=st.sampled_from(["float16", "float32"]))
def test_round_trip_is_bit_equal(data: st.DataObject, precision: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = st.tuples(st.integers(1, 20), st.integers(1, 6))
    elements = st.floats(allow_nan=False, allow_infinity=False, width=16 if precision == "float16" else 32)
    features = data.draw(hnp.arrays(precision, shape, elements=elements))
    path = tmp_path_factory.mktemp("bag") / "a.h5"
    xy_px0 = np.arange(2 * len(features), dtype=np.int64).reshape(-1, 2)
    save_bag(path, Bag("a", features, xy_px0), precision)
    bag = load_bag(path)
    assert bag.features.dtype == np.dtype(precision)
    assert bag.features.tobytes() == features.tobytes()
    assert bag.xy_px0 is not None
    assert bag.xy_px0.tobytes() == xy_px0.tobytes()


def test_everything_that_a_bag_holds_comes_back(tmp_path: Path) -> None:
    bag = a_bag()
    save_bag(tmp_path / "x.h5", bag, "float32")
    again = load_bag(tmp_path / "x.h5")
    assert again.slide_id == "a"
    assert again.tile_size_px0 == 512.0
    np.testing.assert_array_equal(again.xy_px0, bag.xy_px0)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(again.annotation_fraction, bag.annotation_fraction)  # pyright: ignore[reportArgumentType]
    assert dict(again.attributes) == {**bag.attributes, "slide_id": "a", "complete": True}


def test_coordinates_and_truth_may_be_unknown(tmp_path: Path) -> None:
    save_bag(tmp_path / "a.h5", a_bag(xy_px0=None, annotation_fraction=None, attributes={"mpp": None}))
    again = load_bag(tmp_path / "a.h5")
    assert (again.xy_px0, again.annotation_fraction, again.tile_size_px0) == (None, None, None)
    assert "mpp" not in again.attributes


def test_attributes_are_plain_python_values(tmp_path: Path) -> None:
    save_bag(tmp_path / "a.h5", a_bag(attributes={"mpp": np.float32(0.5), "overlap": np.int64(3), "encoder": "ä"}))
    found = read_attributes(tmp_path / "a.h5")
    assert {key: type(found[key]) for key in ("mpp", "overlap", "encoder")} == {
        "mpp": float,
        "overlap": int,
        "encoder": str,
    }


def test_other_programs_find_features_and_coords_under_the_usual_keys(tmp_path: Path) -> None:
    """CLAM and TRIDENT read the file as ``file["features"][:]`` and ``file["coords"][:]``."""
    save_bag(tmp_path / "a.h5", a_bag())
    with h5py.File(tmp_path / "a.h5", "r") as file:
        features, coords = file["features"][:], file["coords"][:]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert features.shape == (4, 3)  # pyright: ignore[reportAttributeAccessIssue]
    assert coords.tolist()[1] == [512, 0]  # pyright: ignore[reportAttributeAccessIssue]


def test_equal_bags_are_equal_bytes(tmp_path: Path) -> None:
    """Fingerprints of a cohort are digests of its bag files."""
    for name in ("x", "y"):
        save_bag(tmp_path / f"{name}.h5", a_bag())
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_half_precision_overflow_is_refused_and_names_the_fix(tmp_path: Path) -> None:
    bag = a_bag(features=np.array([[1.0], [70000.0], [0.0], [0.0]], dtype=np.float32))
    with pytest.raises(FeatureError, match=r"a\.h5: features overflow float16; .*float32"):
        save_bag(tmp_path / "a.h5", bag)
    assert list(tmp_path.iterdir()) == []
    save_bag(tmp_path / "a.h5", bag, "float32")
    assert load_bag(tmp_path / "a.h5").features.max() == 70000.0


ONES = np.ones((4, 3), dtype=np.float32)
USELESS = {
    "nan": (np.where(np.eye(4, 3) > 0, np.nan, ONES), "3 of 4 instances hold NaN or infinite"),
    "inf": (np.where(np.eye(4, 3) > 0, np.inf, ONES), "3 of 4 instances hold NaN or infinite"),
    "no instance": (ONES[:0], "zero instances"),
    "no width": (ONES[:, :0], "width zero"),
    "one axis": (ONES[0], r"shape \(3,\), expected"),
    "three axes": (ONES[None], r"shape \(1, 4, 3\), expected"),
    "whole numbers": (ONES.astype(np.int64), "int64, expected floating point"),
}


@pytest.mark.parametrize(("features", "fault"), USELESS.values(), ids=USELESS)
def test_useless_features_are_refused_when_written_and_when_read(
    features: np.ndarray, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(FeatureError, match=rf"new\.h5: .*{fault}"):
        save_bag(tmp_path / "new.h5", a_bag(features=features, xy_px0=None, annotation_fraction=None), "float32")
    assert not (tmp_path / "new.h5").exists()
    path = rewrite(tmp_path / "old.h5", features=features, coords=None, annotation_fraction=None)
    with pytest.raises(FeatureError, match=rf"old\.h5: .*{fault}"):
        load_bag(path)


MISFIT = {
    "fewer coordinates": ("coords", np.zeros((3, 2), np.int64), "3 rows in 'coords' but 4 in 'features'"),
    "five columns": ("coords", np.zeros((4, 5), np.int64), r"'coords' has shape \(4, 5\)"),
    "flat coordinates": ("coords", np.zeros(4, np.int64), r"'coords' has shape \(4,\)"),
    "more truth": ("annotation_fraction", np.zeros(5, np.float32), "5 rows in 'annotation_fraction'"),
    "truth above one": ("annotation_fraction", np.full(4, 1.5, np.float32), "outside 0 to 1"),
    "truth undefined": ("annotation_fraction", np.full(4, np.nan, np.float32), "outside 0 to 1"),
}


@pytest.mark.parametrize(("key", "values", "fault"), MISFIT.values(), ids=MISFIT)
def test_rows_that_do_not_fit_are_refused_when_written_and_when_read(
    key: str, values: np.ndarray, fault: str, tmp_path: Path
) -> None:
    field = {"coords": "xy_px0"}.get(key, key)
    with pytest.raises(FeatureError, match=rf"new\.h5: .*{fault}"):
        save_bag(tmp_path / "new.h5", a_bag(**{field: values}))
    assert not (tmp_path / "new.h5").exists()
    with pytest.raises(FeatureError, match=rf"old\.h5: .*{fault}"):
        load_bag(rewrite(tmp_path / "old.h5", **{key: values}))


def test_coordinates_that_are_no_whole_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"a\.h5: 'coords' are float64"):
        load_bag(rewrite(tmp_path / "a.h5", coords=np.full((4, 2), np.nan)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"none\.h5: no such file"):
        load_bag(tmp_path / "none.h5")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="not a readable HDF5 file"):
        load_bag(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_not_hdf5_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(FeatureError, match=r"a\.h5: not a readable HDF5 file"):
        load_bag(tmp_path / "a.h5")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    save_bag(path, a_bag(features=np.ones((5000, 8), np.float32), xy_px0=None, annotation_fraction=None))
    path.write_bytes(path.read_bytes()[:-10000])
    with pytest.raises(FeatureError, match=r"a\.h5: "):
        load_bag(path)


def test_a_file_with_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    save_bag(path, a_bag())
    with h5py.File(path, "r+") as file:
        del file["features"]
        made = file.create_dataset("features", data=np.ones((4, 3), np.float32), chunks=(4, 3), compression="gzip")
        place = made.id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    with pytest.raises(FeatureError, match=r"a\.h5: damaged"):
        load_bag(path)


def test_a_file_without_features_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"no dataset 'features' \(found: annotation_fraction, coords\)"):
        load_bag(rewrite(tmp_path / "a.h5", features=None))


def test_features_that_are_a_group_are_named(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "a.h5", features=None)
    with h5py.File(path, "r+") as file:
        file.create_group("features")
    with pytest.raises(FeatureError, match="'features' is a group"):
        load_bag(path)


@pytest.mark.parametrize("flag", [None, False])
def test_a_file_that_is_not_marked_complete_is_refused_with_the_fix(flag: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    save_bag(path, a_bag())
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
        if flag is not None:
            file.attrs["complete"] = flag
    with pytest.raises(FeatureError, match=r"a\.h5: not marked complete; .*mhim convert"):
        load_bag(path)
    with pytest.raises(FeatureError, match="not marked complete"):
        read_attributes(path)
