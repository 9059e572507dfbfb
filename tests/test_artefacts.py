"""Artefacts: a file under its own name is complete, whatever happens while it is written."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mhim.artefacts import atomic_path, quick_digest, read_json, sort_safetensors_header, write_json, write_text
from mhim.errors import ArtefactError

MIB = 1 << 20

KILLED = """
import os, signal, sys
from pathlib import Path
from mhim.artefacts import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    handle = temporary.open("w")
    handle.write("half"); handle.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_BAG = """
import os, signal, sys
from pathlib import Path
import h5py, numpy as np
import mhim.bag as bag
create = h5py.Group.create_dataset
def last_step(self, name, **options):
    made = create(self, name, **options)
    if name == "coords":
        self.file.flush(); os.kill(os.getpid(), signal.SIGKILL)
    return made
h5py.Group.create_dataset = last_step
bag.save_bag(Path(sys.argv[1]), bag.Bag("a", np.ones((9, 3), np.float32), np.zeros((9, 2), np.int64)))
"""


def kill_while_writing(code: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_process_killed_while_writing_leaves_no_target(tmp_path: Path) -> None:
    kill_while_writing(KILLED, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]


def test_a_process_killed_while_overwriting_leaves_the_old_file_whole(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("old")
    kill_while_writing(KILLED, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "old"


def test_a_bag_killed_before_its_last_step_is_nowhere_and_never_reads_as_complete(tmp_path: Path) -> None:
    from mhim.bag import load_bag
    from mhim.errors import FeatureError

    kill_while_writing(KILLED_BAG, tmp_path / "a.h5")
    assert list(tmp_path.glob("*.h5")) == []
    (left,) = tmp_path.iterdir()
    with pytest.raises(FeatureError):
        load_bag(left)


def test_what_a_killed_process_left_does_not_hinder_the_next(tmp_path: Path) -> None:
    kill_while_writing(KILLED, tmp_path / "table.csv")
    write_text(tmp_path / "table.csv", "whole")
    assert (tmp_path / "table.csv").read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file_and_removes_the_temporary_one(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "ä")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ä".encode()


def test_json_is_sorted_and_reads_back_equal(tmp_path: Path) -> None:
    value = {"b": [1, None, 0.1], "a": {"ä": True}}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": value})
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1} x', b"\xff\xfe{"])
def test_json_that_cannot_be_read_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")


def test_missing_json_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB, 8 * MIB])
def test_equal_files_have_equal_digests(size: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"\x01" * size)
    assert quick_digest(tmp_path / "a") == quick_digest(tmp_path / "b")


@pytest.mark.parametrize("size", [1, MIB, 2 * MIB + 7, 8 * MIB])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_digest_sees_one_changed_byte_at_start_middle_and_end(size: int, place: float, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x00" * size)
    before = quick_digest(path)
    content = bytearray(size)
    content[min(size - 1, int(place * size))] = 1
    path.write_bytes(content)
    assert quick_digest(path) != before


@pytest.mark.parametrize("size", [10, 8 * MIB])
def test_digest_sees_one_byte_more(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x00" * size)
    before = quick_digest(path)
    path.write_bytes(b"\x00" * (size + 1))
    assert quick_digest(path) != before


def test_digest_of_a_file_up_to_three_mib_sees_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a"
    size = 3 * MIB
    digests = set()
    for place in range(0, size, size // 37):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        digests.add(quick_digest(path))
    assert len(digests) == len(range(0, size, size // 37))


def test_equal_weights_and_metadata_are_equal_bytes_whatever_order_they_were_given_in(tmp_path: Path) -> None:
    """safetensors orders metadata by a hash that differs between calls."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float64)}
    metadata = {f"key{i}": "ä" * i for i in range(8)}
    contents = set()
    for _ in range(6):
        save_file(tensors, tmp_path / "x", metadata=metadata)
        sort_safetensors_header(tmp_path / "x")
        contents.add((tmp_path / "x").read_bytes())
    assert len(contents) == 1
    again = load_file(tmp_path / "x")
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == metadata
