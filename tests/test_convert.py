"""Features of other tools: every layout that is claimed, what is refused, and the real breast cohort."""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mhim.bag import Bag, load_bag, save_bag
from mhim.cohort import read_cohort
from mhim.config import validate
from mhim.convert import ConvertConfig, TableConfig, convert_folder, convert_tables
from mhim.errors import ArtefactError, ConfigError, FeatureError
from mhim.splits import SplitConfig, make_splits

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)
COORDS = np.array([[0, 0], [512, 0], [0, 512], [512, 512]], dtype=np.int64)


def options(**values: Any) -> ConvertConfig:
    return validate(ConvertConfig, values, "test")


def hdf5(
    path: Path,
    arrays: dict[str, Any],
    attributes: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """An HDF5 file from arrays by key, and attributes by key ("/" for the file)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
        for key, said in (attributes or {}).items():
            file[key].attrs.update(said)
    return path


def convert(source: Path, **values: Any) -> Bag:
    """The only bag that a folder of one file gives."""
    result = convert_folder(source, source.parent / "out", options(**values))
    assert not result.failed, result.failed
    (path,) = (source.parent / "out").glob("*.h5")
    return load_bag(path)


def refusal(source: Path, **values: Any) -> str:
    """Why the only file of a folder is not converted."""
    result = convert_folder(source, source.parent / "out", options(**values))
    assert result.exit_code == 1
    assert not list((source.parent / "out").glob("*"))
    (reason,) = result.failed.values()
    assert "unexpected" not in reason
    return reason


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("features", [FEATURES, FEATURES[None]], ids=["(N, D)", "(1, N, D)"])
def test_clam(features: np.ndarray, source: Path) -> None:
    """Tile size at level 0 is patch_size times downsample, an array in CLAM."""
    said = {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0]), "name": "x"}
    hdf5(source / "TCGA-AA-0001.B2.h5", {"features": features, "coords": COORDS}, {"coords": said})
    bag = convert(source, encoder="resnet50", mpp=1.0)
    assert bag.slide_id == "TCGA-AA-0001.B2"
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.xy_px0, COORDS)  # pyright: ignore[reportArgumentType]
    assert bag.tile_size_px0 == 1024.0
    assert (bag.attributes["tile_size_px"], bag.attributes["encoder"], bag.attributes["mpp"]) == (256, "resnet50", 1.0)


def test_trident(source: Path) -> None:
    said = {"patch_size": 256, "patch_size_level0": 512, "overlap": 32, "level0_width": 9000, "level0_height": 8000}
    attributes = {"coords": {**said, "target_magnification": 20}, "features": {"encoder": "uni_v1", "name": "a"}}
    hdf5(source / "a.h5", {"features": FEATURES, "coords": COORDS}, attributes)
    bag = convert(source)
    np.testing.assert_array_equal(bag.xy_px0, COORDS)  # pyright: ignore[reportArgumentType]
    expected = {
        "encoder": "uni_v1",
        "tile_size_px": 256,
        "tile_size_level0": 512.0,
        "overlap": 32,
        "level0_width": 9000,
        "level0_height": 8000,
    }
    assert {key: bag.attributes[key] for key in expected} == expected


def test_what_a_file_says_wins_over_the_option(source: Path) -> None:
    hdf5(source / "a.h5", {"features": FEATURES}, {"features": {"encoder": "uni_v1"}})
    assert convert(source, encoder="other").attributes["encoder"] == "uni_v1"


STAMP = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "ctranspath"}


def test_stamp_micrometres_become_pixels_by_the_slides_scale(source: Path) -> None:
    hdf5(source / "a.h5", {"feats": FEATURES.astype(np.float16), "coords": COORDS / 2.0}, {"/": STAMP})
    bag = convert(source, slide_mpp=0.25)
    np.testing.assert_array_equal(bag.xy_px0, COORDS * 2)  # pyright: ignore[reportArgumentType]
    assert bag.tile_size_px0 == 1024.0
    assert bag.attributes["mpp"] == pytest.approx(256 / 224)
    assert (bag.attributes["encoder"], bag.attributes["slide_mpp"]) == ("ctranspath", 0.25)


def test_stamp_micrometres_without_the_slides_scale_are_refused_with_the_fix(source: Path) -> None:
    hdf5(source / "a.h5", {"feats": FEATURES, "coords": COORDS}, {"/": STAMP})
    assert refusal(source).endswith("a.h5: coordinates are in micrometres; give --slide-mpp to turn them into pixels")


def test_old_stamp_files_do_not_say_their_unit_and_nothing_is_guessed(source: Path) -> None:
    hdf5(source / "a.h5", {"feats": FEATURES, "coords": COORDS})
    assert "coordinates have no unit; give --coords-unit um or --coords-unit px0" in refusal(source)
    np.testing.assert_array_equal(convert(source, coords_unit="px0").xy_px0, COORDS)  # pyright: ignore[reportArgumentType]


def test_a_given_unit_counts_where_the_file_says_none(source: Path) -> None:
    hdf5(source / "a.h5", {"feats": FEATURES, "coords": COORDS})
    bag = convert(source, coords_unit="um", slide_mpp=0.5)
    np.testing.assert_array_equal(bag.xy_px0, COORDS * 2)  # pyright: ignore[reportArgumentType]


def test_an_unknown_unit_is_refused(source: Path) -> None:
    hdf5(source / "a.h5", {"features": FEATURES, "coords": COORDS}, {"coords": {"unit": "mm"}})
    assert "coordinates are in 'mm'" in refusal(source)


def atlas(source: Path, *encoders: str) -> None:
    arrays: dict[str, Any] = {f"features/{name}": FEATURES + i for i, name in enumerate(encoders)}
    arrays["coords"] = np.concatenate([COORDS, np.full((4, 3), 256)], axis=1)
    hdf5(source / "a.h5", arrays, {"/": {"patch_size_level0": 512}})


def test_atlaspatch_with_one_encoder(source: Path) -> None:
    """Coordinates are x, y, width, height, level."""
    atlas(source, "uni_v1")
    bag = convert(source)
    np.testing.assert_array_equal(bag.xy_px0, COORDS)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert (bag.tile_size_px0, bag.attributes.get("encoder")) == (512.0, "uni_v1")


def test_atlaspatch_with_several_encoders_asks_which(source: Path) -> None:
    atlas(source, "conch_v1", "uni_v1")
    assert "'features' holds conch_v1, uni_v1; choose with --encoder" in refusal(source)
    assert "'features' holds conch_v1, uni_v1; choose with --encoder" in refusal(source, encoder="uni")
    np.testing.assert_array_equal(convert(source, encoder="uni_v1").features, FEATURES + 1)


TENSORS = {
    "float32": torch.from_numpy(FEATURES),
    "bfloat16": torch.from_numpy(FEATURES).bfloat16(),
    "with a gradient": torch.from_numpy(FEATURES).clone().requires_grad_(),
    "(1, N, D)": torch.from_numpy(FEATURES)[None],
    "dictionary": {"features": torch.from_numpy(FEATURES)},
    "dictionary of feats": {"feats": torch.from_numpy(FEATURES), "other": [1, "x"]},
}


@pytest.mark.parametrize("value", TENSORS.values(), ids=TENSORS)
def test_tensor_files(value: Any, source: Path) -> None:
    torch.save(value, source / "a.pt")
    bag = convert(source, precision="float32")
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert bag.xy_px0 is None


def test_coordinates_beside_a_tensor_are_kept(source: Path) -> None:
    torch.save({"features": torch.from_numpy(FEATURES), "coords": torch.from_numpy(COORDS)}, source / "a.pt")
    np.testing.assert_array_equal(convert(source).xy_px0, COORDS)  # pyright: ignore[reportArgumentType]


def test_array_files(source: Path) -> None:
    np.save(source / "a.npy", FEATURES)
    np.testing.assert_array_equal(convert(source).features, FEATURES)


def test_files_are_told_apart_by_content_not_by_name(source: Path) -> None:
    hdf5(source / "h5-inside.pt", {"features": FEATURES})
    torch.save(torch.from_numpy(FEATURES), source / "pt-inside.h5")
    with (source / "npy-inside.pt").open("wb") as handle:
        np.save(handle, FEATURES)
    result = convert_folder(source, source.parent / "out", options())
    assert len(result.done) == 3
    for path in (source.parent / "out").iterdir():
        np.testing.assert_array_equal(load_bag(path).features, FEATURES)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(source: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"features": Trap(sprung)}, source / "zip.pt")
    (source / "plain.pt").write_bytes(pickle.dumps(Trap(sprung)))
    np.save(source / "array.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    result = convert_folder(source, tmp_path / "out", options())
    assert sorted(result.failed) == ["array.npy", "plain.pt", "zip.pt"]
    assert all("can be read safely" in reason for reason in result.failed.values())
    assert not sprung.exists()


REFUSED = {
    "slide-level features": ({"features": FEATURES[0]}, r"shape (3,), expected (instances, width)"),
    "no features": ({"data": FEATURES}, "no dataset 'features' or 'feats' (found: data)"),
    "nothing": ({}, "(found: nothing)"),
    "nan": ({"features": FEATURES * np.nan}, "4 of 4 instances hold NaN"),
    "zero instances": ({"features": FEATURES[:0]}, "zero instances"),
    "overflow": ({"features": FEATURES * 1e5}, "overflow float16; store them with precision float32"),
    "fewer coordinates": ({"features": FEATURES, "coords": COORDS[:3]}, "3 rows in 'coords' but 4"),
    "flat coordinates": ({"features": FEATURES, "coords": np.arange(4)}, "not finite pairs"),
    "coordinates undefined": ({"features": FEATURES, "coords": COORDS * np.nan}, "not finite pairs"),
}


@pytest.mark.parametrize(("arrays", "fault"), REFUSED.values(), ids=REFUSED)
def test_refused_content_is_one_line_that_names_the_file(arrays: dict[str, Any], fault: str, source: Path) -> None:
    hdf5(source / "a.h5", arrays)
    reason = refusal(source)
    assert fault in reason
    assert "a.h5: " in reason


@pytest.mark.parametrize("name", ["a.h5", "a.pt", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89HDF\r\n\x1a\nxx", b"\x93NUMPYxx"])
def test_garbage_is_one_line_that_names_the_file(name: str, content: bytes, source: Path) -> None:
    (source / name).write_bytes(content)
    assert name in refusal(source)


def test_one_faulty_file_does_not_stop_the_others(source: Path) -> None:
    np.save(source / "a.npy", FEATURES)
    np.save(source / "b.npy", FEATURES[0])
    np.save(source / "c.npy", FEATURES)
    result = convert_folder(source, source.parent / "out", options())
    assert (result.done, list(result.failed)) == (["a.npy", "c.npy"], ["b.npy"])


def test_a_second_run_converts_only_what_is_new(source: Path) -> None:
    out = source.parent / "out"
    np.save(source / "a.npy", FEATURES)
    convert_folder(source, out, options())
    before = (out / "a.h5").stat().st_mtime_ns
    np.save(source / "b.npy", FEATURES)
    result = convert_folder(source, out, options())
    assert (result.done, result.skipped) == (["b.npy"], ["a.npy"])
    assert (out / "a.h5").stat().st_mtime_ns == before


def test_another_input_or_configuration_is_refused_and_the_bag_left_as_it_is(source: Path) -> None:
    out = source.parent / "out"
    np.save(source / "a.npy", FEATURES)
    convert_folder(source, out, options())
    before = (out / "a.h5").read_bytes()
    assert "another configuration" in failed_again(source, out, mpp=0.5)
    np.save(source / "a.npy", FEATURES + 1)
    assert "another input" in failed_again(source, out)
    assert (out / "a.h5").read_bytes() == before
    assert convert_folder(source, out, options(), overwrite=True).done == ["a.npy"]
    np.testing.assert_array_equal(load_bag(out / "a.h5").features, FEATURES + 1)


def failed_again(source: Path, out: Path, **values: Any) -> str:
    return convert_folder(source, out, options(**values)).failed["a.npy"]


def test_a_foreign_file_in_the_way_is_not_replaced(source: Path) -> None:
    np.save(source / "a.npy", FEATURES)
    hdf5(source.parent / "out" / "a.h5", {"features": FEATURES + 5})
    assert "exists but is not a complete file" in failed_again(source, source.parent / "out")


def test_two_files_of_one_slide_are_refused(source: Path) -> None:
    """The second would replace the first, or pass for it."""
    np.save(source / "a.npy", FEATURES)
    hdf5(source / "a.h5", {"features": FEATURES})
    with pytest.raises(FeatureError, match=r"a\.h5 and a\.npy are of one slide"):
        convert_folder(source, source.parent / "out", options(), overwrite=True)


def test_a_folder_is_not_converted_into_itself(source: Path) -> None:
    hdf5(source / "a.h5", {"features": FEATURES})
    before = (source / "a.h5").read_bytes()
    with pytest.raises(ArtefactError, match="is the folder to convert"):
        convert_folder(source, source, options(), overwrite=True)
    assert (source / "a.h5").read_bytes() == before


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="none: no such folder"):
        convert_folder(tmp_path / "none", tmp_path / "out", options())
    with pytest.raises(FeatureError, match=r"no feature files here \(looked for \.h5"):
        convert_folder(tmp_path, tmp_path / "out", options())


BAGS = "bag,case,kind,rows,fold,task\nb1,c1,yes,0 2,0,t1\nb2,c2,no,1,1,t1\nb1,c1,no,3,0,t2\n"
INSTANCES = "x,y,inside\n0,0,1\n10,0,0\n0,10,0\n10,10,1\n"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    np.savez(tmp_path / "features.npz", features=FEATURES)
    np.save(tmp_path / "features.npy", FEATURES)
    (tmp_path / "bags.csv").write_text(BAGS)
    (tmp_path / "instances.csv").write_text(INSTANCES)
    return tmp_path


def columns(**changes: Any) -> TableConfig:
    names = {"bag_id": "bag", "case_id": "case", "label": "kind", "rows": "rows", "fold": "fold"}
    facts = {"x": "x", "y": "y", "truth": "inside", "where": {"task": "t1"}}
    return validate(TableConfig, {**names, **facts, **changes}, "test")


def from_tables(folder: Path, matrix: str = "features.npz", overwrite: bool = False, **changes: Any) -> Any:
    paths = (folder / matrix, folder / "bags.csv", folder / "instances.csv")
    return convert_tables(*paths, folder / "out", columns(**changes), options(), overwrite)


@pytest.mark.parametrize("matrix", ["features.npz", "features.npy"])
def test_a_matrix_with_tables(matrix: str, tables: Path) -> None:
    assert from_tables(tables, matrix).done == ["b1", "b2"]
    bag = load_bag(tables / "out" / "features" / "b1.h5")
    np.testing.assert_array_equal(bag.features, FEATURES[[0, 2]])
    assert bag.xy_px0 is not None
    assert bag.annotation_fraction is not None
    assert bag.xy_px0.tolist() == [[0, 0], [0, 10]]
    assert bag.annotation_fraction.tolist() == [1, 0]
    cohort = read_cohort(tables / "out" / "cohort.csv")
    assert [(row.slide_id, row.case_id, row.label, row.fold) for row in cohort] == [
        ("b1", "c1", "yes", 0),
        ("b2", "c2", "no", 1),
    ]


def test_a_bag_named_twice_asks_for_a_choice(tables: Path) -> None:
    """Without --where the second task's bag would count as already complete."""
    with pytest.raises(ConfigError, match=r"bag b1 has more than one row; choose one with --where"):
        from_tables(tables, where={})
    assert not (tables / "out").exists()


TABLE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "bag column": ({"bag_id": "patient"}, r"bags\.csv: no column 'patient' \(found: bag, case"),
    "truth column": ({"truth": "idc"}, r"instances\.csv: no column 'idc' \(found: x, y, inside"),
    "where column": ({"where": {"job": "t1"}}, "no column 'job' to select by"),
    "where value": ({"where": {"task": "t9"}}, "no bag has {'task': 't9'}"),
}


@pytest.mark.parametrize(("changes", "fault"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_a_faulty_column_is_named(changes: dict[str, Any], fault: str, tables: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        from_tables(tables, **changes)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [("9", "outside the matrix of 4"), ("-1", "outside"), ("", "names no rows"), ("a b", "more than whole numbers")],
)
def test_faulty_rows_fail_their_bag_alone(rows: str, fault: str, tables: Path) -> None:
    (tables / "bags.csv").write_text(BAGS.replace("0 2", rows))
    result = from_tables(tables)
    assert result.done == ["b2"]
    assert fault in result.failed["b1"]


def test_bag_names_that_leave_the_folder_are_refused(tables: Path) -> None:
    (tables / "bags.csv").write_text(BAGS.replace("b2", "../b2"))
    with pytest.raises(ConfigError, match=r"'\.\./b2' cannot name a bag file"):
        from_tables(tables)


def test_an_instance_table_of_another_length_is_refused(tables: Path) -> None:
    (tables / "instances.csv").write_text(INSTANCES + "1,1,1\n")
    with pytest.raises(FeatureError, match=r"instances\.csv: 5 rows, but .*features\.npz has 4"):
        from_tables(tables)


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04broken"])
def test_a_matrix_that_cannot_be_read_is_named(name: str, content: bytes, tables: Path) -> None:
    (tables / name).write_bytes(content)
    with pytest.raises(FeatureError, match=name):
        from_tables(tables, name)


def test_a_cohort_table_that_was_changed_is_not_replaced(tables: Path) -> None:
    from_tables(tables)
    with (tables / "out" / "cohort.csv").open("a") as handle:
        handle.write("mine,c9,yes,0\n")
    with pytest.raises(ArtefactError, match=r"cohort\.csv: exists with other rows"):
        from_tables(tables)
    assert "mine" in (tables / "out" / "cohort.csv").read_text()
    from_tables(tables, overwrite=True)
    assert "mine" not in (tables / "out" / "cohort.csv").read_text()


def test_tables_are_resumed(tables: Path) -> None:
    from_tables(tables)
    (tables / "out" / "features" / "b2.h5").unlink()
    result = from_tables(tables)
    assert (result.done, result.skipped) == (["b2"], ["b1"])


def test_the_real_breast_cohort_has_the_counts_that_its_source_states(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "idc_breast_dev"
    if not folder.is_dir():
        pytest.skip("needs shared/data/idc_breast_dev")
    names = {"bag_id": "patient_id", "label": "bag_label", "rows": "patch_indices", "fold": "fold"}
    facts = {"x": "x", "y": "y", "truth": "idc_label", "where": {"task": "presence_w20"}}
    result = convert_tables(
        folder / "features_effnetlite0_304d_dev.npz",
        folder / "bags_dev.csv",
        folder / "patches_dev.csv",
        tmp_path,
        validate(TableConfig, names | facts, "test"),
        options(encoder="efficientnet-lite0-mid"),
    )
    assert (len(result.done), result.failed) == (130, {})
    cohort = read_cohort(tmp_path / "cohort.csv")
    assert (len(cohort), sum(row.label == "1" for row in cohort), cohort.classes) == (130, 51, ("0", "1"))
    with (folder / "bags_dev.csv").open() as handle:
        said = {row["patient_id"]: row for row in csv.DictReader(handle) if row["task"] == "presence_w20"}
    for row in cohort:
        bag = load_bag(tmp_path / "features" / f"{row.slide_id}.h5")
        truth = bag.annotation_fraction
        assert truth is not None
        assert bag.features.shape == (int(said[row.slide_id]["n_patches"]), 304)
        assert truth.sum() == int(said[row.slide_id]["n_idc_patches"])
        assert (1 <= truth.sum() <= math.ceil(0.2 * len(bag))) if row.label == "1" else truth.sum() == 0
        assert row.fold == int(said[row.slide_id]["fold"])
    folds = make_splits(cohort, SplitConfig(folds=5, val_fraction=0.2, seed=0, use_fold_column=True)).folds
    assert [set(fold.test) for fold in folds] == [
        {name for name, row in said.items() if int(row["fold"]) == index} for index in range(5)
    ]


def test_a_bag_of_our_own_passes_through(source: Path) -> None:
    save_bag(source / "a.h5", Bag("a", FEATURES, COORDS, {"encoder": "test", "tile_size_px": 256}))
    bag = convert(source)
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert bag.attributes["encoder"] == "test"
