"""The cohort table: every fault is one line that names the file and the place; nothing is guessed."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhim.cohort import Cohort, read_cohort, read_slides, slide_name
from mhim.errors import CohortError

HEADER = "slide_id,case_id,label\n"
GOOD = HEADER + "a,1,x\nb,2,y\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "cohort.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(folder: Path, text: str | bytes) -> Cohort:
    return read_cohort(write(folder, text))


def test_rows_keep_their_order_and_their_text(tmp_path: Path) -> None:
    cohort = read(tmp_path, HEADER + "b,007,y\na,1.0,x\nc,1e3,x\n")
    assert [(row.slide_id, row.case_id, row.label) for row in cohort] == [
        ("b", "007", "y"),
        ("a", "1.0", "x"),
        ("c", "1e3", "x"),
    ]
    assert cohort.classes == ("x", "y")
    assert [cohort.label_index(row) for row in cohort] == [1, 0, 0]
    assert len(cohort) == 3


FAULTS = {
    "empty file": ("", "missing column slide_id, case_id, label (found: nothing)"),
    "missing columns": ("slide_id,group\na,1\n", "missing column case_id, label (found: slide_id, group)"),
    "semicolons": (GOOD.replace(",", ";"), "the columns look separated by semicolons; save the table with commas"),
    "header only": (HEADER, "the table has no rows"),
    "column twice": ("slide_id,case_id,label,label\na,1,x,y\nb,2,y,x\n", "column 'label' appears twice"),
    "slide twice": (GOOD + "a,3,x\n", "slide a appears more than once (1 such); keep one row"),
    "slide twice by a space": (GOOD + " a ,3,x\n", "slide a appears more than once"),
    "no label": (HEADER + "a,1,x\nb,2,\nc,3,y\n", "slide b has no label; fill the column 'label' or remove the row"),
    "only spaces as label": (HEADER + "a,1,x\nb,2,  \nc,3,y\n", "slide b has no label"),
    "no slide name": (HEADER + "a,1,x\n,2,y\n", " line 3: empty slide_id"),
    "no case": (HEADER + "a,1,x\nb,,y\n", " line 3: slide b has no case_id"),
    "one class": (HEADER + "a,1,x\nb,2,x\n", "only one class (x); a classifier needs slides of at least two"),
    "slash": (HEADER + "a,1,x\nd/b,2,y\n", " line 3: slide_id 'd/b' holds a path separator; give the bare name"),
    "backslash": (HEADER + "a,1,x\nd\\b,2,y\n", " line 3: slide_id 'd\\b' holds a path separator"),
    "short row": (HEADER + "a,1,x\nb,2\n", " line 3: 2 cells, but the header has 3 columns"),
    "long row": (HEADER + "a,1,x,\nb,2,y,\n", " line 2: 4 cells, but the header has 3 columns"),
    "open quote": (HEADER + 'a,1,x\nb,2,"y\n', "not a readable CSV table"),
    "latin-1": ((HEADER + "a,1,\xe4\nb,2,y\n").encode("latin-1"), "not UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\xff", "not a readable CSV table"),
}


@pytest.mark.parametrize(("text", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_table_is_one_line_with_file_and_fault(text: str | bytes, fault: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'cohort.csv'}")
    assert fault in message
    assert "\n" not in message


NUMBERS = [
    ("mpp", "half", "mpp 'half' is not a number"),
    ("mpp", "nan", "mpp 'nan' is not a number"),
    ("mpp", "0", "mpp 0 is not positive"),
    ("mpp", "-0.5", "mpp -0.5 is not positive"),
    ("mpp", "inf", "mpp 'inf' is not a number"),
    ("mpp", "0,5", "cells, but the header has"),
    ("fold", "1.5", "fold 1.5 is not a whole number"),
    ("fold", "-1", "fold -1 is not a whole number"),
    ("fold", "NA", "fold 'NA' is not a number"),
    ("time", "-3", "time -3 is negative"),
    ("time", "long", "time 'long' is not a number"),
    ("event", "0.7", "event 0.7 is neither 1 (event) nor 0 (censored)"),
    ("event", "2", "event 2 is neither"),
    ("event", "yes", "event 'yes' is not a number"),
]


@pytest.mark.parametrize(("column", "value", "fault"), NUMBERS)
def test_a_faulty_number_is_named_with_its_line(column: str, value: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError) as caught:
        read(tmp_path, f"slide_id,case_id,label,{column}\na,1,x,\nb,2,y,{value}\n")
    assert " line 3: " in str(caught.value)
    assert fault in str(caught.value)


def test_optional_columns_are_read_and_may_be_empty(tmp_path: Path) -> None:
    text = (
        "slide_id,case_id,label,path,mpp,site,time,event,fold,annotation,tissue_mask,extra\n"
        "a,1,x,slides/a.svs,0.25,north,12.5,1,3,masks/a.png,tissue/a.geojson,?\nb,2,y,,,,,,,,,\n"
    )
    first, second = read(tmp_path, text).rows
    assert first.path == tmp_path / "slides/a.svs"
    assert first.annotation == tmp_path / "masks/a.png"
    assert first.tissue_mask == tmp_path / "tissue/a.geojson"
    assert second.tissue_mask is None
    assert (first.mpp, first.site, first.time, first.event, first.fold) == (0.25, "north", 12.5, 1, 3)
    assert (second.path, second.mpp, second.site, second.time, second.event, second.fold) == (None,) * 6


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    cohort = read(tmp_path, "slide_id,case_id,label,path\na,1,x,/data/a.svs\nb,2,y,../b.svs\n")
    assert [row.path for row in cohort] == [Path("/data/a.svs"), tmp_path / "../b.svs"]


def test_a_missing_table_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"none\.csv: no such table"):
        read_cohort(tmp_path / "none.csv")
    with pytest.raises(CohortError, match="cannot be read"):
        read_cohort(tmp_path)


SPELLINGS = {
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "windows line ends": GOOD.replace("\n", "\r\n").encode(),
    "old mac line ends": GOOD.replace("\n", "\r").encode(),
    "no last line end": GOOD.rstrip("\n").encode(),
    "quotes": b'"slide_id","case_id","label"\n"a","1","x"\n"b","2","y"\n',
    "spaces": b" slide_id , case_id , label \n a , 1 , x \n b , 2 , y \n",
    "spaces before quotes": b'slide_id, case_id, label\na, "1", "x"\nb, "2", "y"\n',
    "blank lines": b"\n" + GOOD.replace("\n", "\n\n").encode() + b",,\n",
    "other order and more columns": b"note,label,case_id,slide_id\nq,x,1,a\nr,y,2,b\n",
    "columns without a name": b"slide_id,case_id,label,,\na,1,x,,\nb,2,y,,\n",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_the_same_table_in_other_spellings_is_the_same_cohort(text: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, text) == read(tmp_path, GOOD)


@pytest.mark.parametrize("word", ["NA", "None", "nan", "NULL", "n/a", "N/A", "inf", "True", "#N/A", "-"])
def test_words_that_look_like_nothing_stay_text(word: str, tmp_path: Path) -> None:
    cohort = read(tmp_path, HEADER + f"a,{word},{word}\nb,2,y\n")
    assert (cohort.rows[0].case_id, cohort.rows[0].label) == (word, word)


def test_a_quoted_cell_may_hold_a_comma(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + 'a,1,"x, mostly"\nb,2,y\n').classes == ("x, mostly", "y")


def test_line_numbers_count_lines_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="line 5: empty slide_id"):
        read(tmp_path, "slide_id,case_id,label,note\na,1,x,\n\nb,2,y,\n,3,y,\n")


def test_numeric_classes_are_ordered_by_value(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + "a,1,10\nb,2,2\nc,3,-1\nd,4,2.5\n").classes == ("-1", "2", "2.5", "10")


def test_numbers_come_before_words_and_nan_is_a_word(tmp_path: Path) -> None:
    expected = ("1", "10", "inf", "nan", "tumour")
    for order in permutations(expected, 5):
        text = HEADER + "".join(f"s{label},c{label},{label}\n" for label in order)
        assert read(tmp_path, text).classes == expected


label_names = st.sampled_from(["0", "1", "2", "10", "nan", "inf", "low", "High", "1_0", "é"])


@settings(deadline=None, max_examples=40)
@given(labels=st.lists(label_names, min_size=2, max_size=12, unique=True), data=st.data())
def test_class_order_does_not_depend_on_the_order_of_rows(
    labels: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cohort")
    shuffled = data.draw(st.permutations(labels))

    def classes(order: list[str]) -> tuple[str, ...]:
        return read(folder, HEADER + "".join(f"s{i},c{i},{label}\n" for i, label in enumerate(order))).classes

    assert classes(labels) == classes(shuffled)


def test_a_case_counts_as_its_highest_class(tmp_path: Path) -> None:
    cohort = read(tmp_path, HEADER + "a,1,x\nb,1,y\nc,2,x\nd,3,y\n")
    assert cohort.case_labels() == {"1": 1, "2": 0, "3": 1}
    assert [row.slide_id for row in cohort.of_cases(["3", "1"])] == ["a", "b", "d"]


def test_cases_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Matching by substring joins TCGA-AA-1 with TCGA-AA-10."""
    cohort = read(tmp_path, HEADER + "a,TCGA-AA-1,x\nb,TCGA-AA-10,y\n")
    assert [row.slide_id for row in cohort.of_cases(["TCGA-AA-1"])] == ["a"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.svs", "a"),
        ("TCGA-3L-AA1B-01Z-00-DX1.8923A151-A690-40B7.svs", "TCGA-3L-AA1B-01Z-00-DX1.8923A151-A690-40B7"),
        ("TCGA-XX.svs", "TCGA-XX"),
        ("s.1.2.ome.tif", "s.1.2"),
        ("s.ome.tiff", "s"),
        ("UPPER.NDPI", "UPPER"),
    ],
)
def test_only_the_slide_suffix_is_cut_off(file: str, name: str, tmp_path: Path) -> None:
    touch(tmp_path, file)
    assert slide_name(tmp_path / file) == name
    assert [(row.slide_id, row.case_id) for row in read_slides(tmp_path)] == [(name, name)]


def test_a_folder_gives_its_slides_sorted_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a.ome.tif", "c.MRXS", "c/Data0001.dat", "notes.txt", "d.png", "._b.svs", ".b.svs.1.tmp")
    assert [row.path for row in read_slides(tmp_path)] == [tmp_path / n for n in ("a.ome.tif", "b.svs", "c.MRXS")]


def test_a_folder_of_pictures_is_a_folder_of_slides(tmp_path: Path) -> None:
    """Where there is nothing else: beside slides, pictures are labels and previews."""
    touch(tmp_path, "b.PNG", "a.jpg", "c.jpeg", "notes.txt", ".b.png", "d.png/readme")
    assert [row.path for row in read_slides(tmp_path)] == [tmp_path / n for n in ("a.jpg", "b.PNG", "c.jpeg")]
    assert [row.slide_id for row in read_slides(tmp_path)] == ["a", "b", "c"]
    touch(tmp_path, "e.svs")
    assert [row.slide_id for row in read_slides(tmp_path)] == ["e"]


def test_a_folder_of_dicom_files_is_one_slide_named_after_the_folder(tmp_path: Path) -> None:
    """Scanners number the files of every slide alike."""
    touch(tmp_path, "one/DCM_0.dcm", "one/DCM_1.dcm", "two.5/DCM_0.DCM", "empty/readme.txt")
    rows = read_slides(tmp_path)
    assert [(row.slide_id, row.path) for row in rows] == [("one", tmp_path / "one"), ("two.5", tmp_path / "two.5")]


def test_two_slides_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "a.ndpi")
    with pytest.raises(CohortError, match="slide a appears more than once"):
        read_slides(tmp_path)


def test_one_slide_file_is_a_cohort_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.b.svs")
    assert [row.slide_id for row in read_slides(tmp_path / "a.b.svs")] == ["a.b"]


def test_a_table_of_slides_needs_no_labels(tmp_path: Path) -> None:
    rows = read_slides(write(tmp_path, "slide_id,path,mpp\na,a.svs,0.5\nb,b.svs,\n"))
    assert [(row.slide_id, row.case_id, row.label, row.mpp) for row in rows] == [
        ("a", "a", None, 0.5),
        ("b", "b", None, None),
    ]


def test_a_slide_without_path_and_a_table_without_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="slide b has no path"):
        read_slides(write(tmp_path, "slide_id,path\na,a.svs\nb,\n"))
    with pytest.raises(CohortError, match="missing column path"):
        read_slides(write(tmp_path, GOOD))


def test_a_place_without_slides_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no such file or folder"):
        read_slides(tmp_path / "none")
    with pytest.raises(CohortError, match=r"no slides here \(looked for \.svs"):
        read_slides(tmp_path)
