"""Bags of a cohort: checked together before any training, and every fault names a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mhim.bag import Bag, load_bag, save_bag
from mhim.cohort import read_cohort
from mhim.errors import CohortError, FeatureError
from mhim.training.data import BagStore, CohortFeatures, check_features


def store_of(folder: Path) -> BagStore:
    return BagStore(folder / "features", read_cohort(folder / "cohort.csv"))


def check(folder: Path, **options: Any) -> CohortFeatures:
    return check_features(store_of(folder), **options)[1]


def change(folder: Path, slide_id: str, **attributes: Any) -> None:
    """Write attributes of one bag file; None removes."""
    with h5py.File(folder / "features" / f"{slide_id}.h5", "r+") as file:
        for key, value in attributes.items():
            if value is None:
                del file.attrs[key]
            else:
                file.attrs[key] = value


def test_what_the_bags_have_in_common_is_reported(cohort_folder: Path) -> None:
    found = check(cohort_folder)
    assert (found.in_dim, found.encoder, found.mpp, found.unlabelled) == (6, "test", 0.5, ())


def test_a_labelled_bag_holds_the_stored_features_and_the_class_index(cohort_folder: Path) -> None:
    store = store_of(cohort_folder)
    bags = store.part(["c03", "c00"])
    assert [row.slide_id for row in bags.rows] == ["s00_0", "s03_0"]
    assert [int(bag.label) for bag in bags] == [0, 1]
    np.testing.assert_array_equal(bags[1].features.numpy(), load_bag(store.path("s03_0")).features)


def test_a_mixed_feature_width_names_both_files(cohort_folder: Path) -> None:
    save_bag(
        cohort_folder / "features" / "s05_0.h5", Bag("s05_0", np.ones((4, 7), np.float32), None, {"encoder": "test"})
    )
    with pytest.raises(FeatureError, match=r"s05_0\.h5: this slide has feature width 7, but s00_0\.h5 has 6"):
        check(cohort_folder)


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"encoder": "other"}, "encoder other, but s00_0.h5 has test"),
        ({"encoder": None}, "encoder None, but s00_0.h5 has test"),
        ({"encoder_weights_sha256": "ab12"}, "encoder weights ab12, but s00_0.h5 has None"),
        ({"mpp": 0.52}, "mpp 0.52, but s00_0.h5 has 0.5"),
        ({"mpp": 1.0}, "mpp 1.0, but s00_0.h5 has 0.5"),
    ],
)
def test_mixed_encoders_and_scales_name_the_file(attributes: dict[str, Any], fault: str, cohort_folder: Path) -> None:
    change(cohort_folder, "s05_0", **attributes)
    with pytest.raises(FeatureError) as caught:
        check(cohort_folder)
    assert "s05_0.h5: this slide has " + fault in str(caught.value)


def test_scales_within_two_percent_are_one_scale(cohort_folder: Path) -> None:
    change(cohort_folder, "s05_0", mpp=0.505)
    assert check(cohort_folder).mpp == 0.5


def test_scales_are_compared_also_when_the_first_bag_says_none(cohort_folder: Path) -> None:
    change(cohort_folder, "s00_0", mpp=None)
    assert check(cohort_folder).mpp == 0.5
    change(cohort_folder, "s05_0", mpp=0.25)
    with pytest.raises(FeatureError, match=r"s05_0\.h5: this slide has mpp 0\.25, but s01_0\.h5 has 0\.5"):
        check(cohort_folder)


def test_missing_bags_are_counted_and_the_first_is_named(cohort_folder: Path) -> None:
    for slide in ("s05_0", "s07_0"):
        (cohort_folder / "features" / f"{slide}.h5").unlink()
    with pytest.raises(CohortError, match=r"2 of 24 slides .* have no bag \(first: s05_0\.h5\); .*--allow-missing"):
        check(cohort_folder)


def test_allowed_missing_bags_leave_the_cohort(cohort_folder: Path) -> None:
    (cohort_folder / "features" / "s05_0.h5").unlink()
    cohort, _ = check_features(store_of(cohort_folder), allow_missing=True)
    assert len(cohort) == 23
    assert "s05_0" not in [row.slide_id for row in cohort]
    assert cohort.classes == ("normal", "tumour")


def test_no_bag_at_all_and_no_folder_are_named(cohort_folder: Path) -> None:
    for path in (cohort_folder / "features").iterdir():
        path.unlink()
    with pytest.raises(CohortError, match="no slide of .* has a bag here; do the slide_ids match"):
        check(cohort_folder, allow_missing=True)
    (cohort_folder / "features").rmdir()
    with pytest.raises(FeatureError, match=r"features: no such folder of bags; make it with 'mhim encode'"):
        check(cohort_folder)


def test_bags_without_a_row_are_listed(cohort_folder: Path) -> None:
    for name in ("z", "y.1"):
        save_bag(cohort_folder / "features" / f"{name}.h5", Bag(name, np.ones((4, 6), np.float32)))
    assert check(cohort_folder).unlabelled == ("y.1", "z")


def test_a_bag_with_nan_is_named_whatever_part_it_is_in(cohort_folder: Path) -> None:
    with h5py.File(cohort_folder / "features" / "s23_0.h5", "r+") as file:
        file["features"][2, 0] = np.nan  # pyright: ignore
    with pytest.raises(FeatureError, match=r"s23_0\.h5: 1 of \d+ instances hold NaN"):
        check(cohort_folder)


def test_the_fingerprint_changes_with_a_feature_a_label_or_a_case_and_not_with_the_path(
    cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from cohort_files import write_cohort

    same = tmp_path_factory.mktemp("same")
    write_cohort(same)
    before = check(cohort_folder).data_fingerprint
    assert check(same).data_fingerprint == before
    table = (same / "cohort.csv").read_text()
    for old, new in (("s00_0,c00,normal", "s00_0,c00,tumour"), ("s00_0,c00,normal", "s00_0,c99,normal")):
        (same / "cohort.csv").write_text(table.replace(old, new))
        assert check(same).data_fingerprint != before
    (same / "cohort.csv").write_text(table)
    with h5py.File(same / "features" / "s00_0.h5", "r+") as file:
        file["features"][0, 0] += 1  # pyright: ignore
    assert check(same).data_fingerprint != before


def test_bags_beyond_the_memory_budget_are_read_again(cohort_folder: Path) -> None:
    cohort = read_cohort(cohort_folder / "cohort.csv")
    roomy, tight = (BagStore(cohort_folder / "features", cohort, budget, mapped=False) for budget in (1 << 20, 0))
    assert roomy.features("s00_0") is roomy.features("s00_0")
    assert tight.features("s00_0") is not tight.features("s00_0")
    np.testing.assert_array_equal(tight.features("s00_0"), roomy.features("s00_0"))
