"""Work slide by slide: one failure does not stop the others, and every failure is one line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import mhim.batch as batch
from mhim.batch import BatchResult, Outcome, print_result, run_batch
from mhim.errors import SlideError


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed, on a wide console without a terminal."""
    text = io.StringIO()
    monkeypatch.setattr(batch, "console", Console(file=text, width=200, soft_wrap=True))
    return text


def run(items: list[str]) -> BatchResult:
    def work(item: str) -> Outcome:
        if item.startswith("bad"):
            raise SlideError(f"{item}.svs: no mpp;\n  give --mpp")
        if item.startswith("bug"):
            raise IndexError("list index\nout of range")
        if item.startswith("stop"):
            raise KeyboardInterrupt
        return Outcome.SKIPPED if item.startswith("old") else Outcome.DONE

    return run_batch(items, work, name=lambda item: item, label="working")


def test_failures_do_not_stop_the_others() -> None:
    result = run(["bad1", "a", "bug", "old", "b", "bad2"])
    assert result.done == ["a", "b"]
    assert result.skipped == ["old"]
    assert list(result.failed) == ["bad1", "bug", "bad2"]


def test_reasons_are_one_line_and_a_programming_error_is_called_unexpected() -> None:
    result = run(["bad1", "bug"])
    assert result.failed["bad1"] == "bad1.svs: no mpp; give --mpp"
    assert result.failed["bug"] == "unexpected IndexError: list index out of range"


def test_ctrl_c_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(["a", "stop", "b"])


@pytest.mark.parametrize(("items", "code"), [([], 0), (["a", "old"], 0), (["a", "bad1"], 1), (["bug"], 1)])
def test_exit_code_is_one_when_something_failed(items: list[str], code: int) -> None:
    assert run(items).exit_code == code


def test_counts_and_every_failure_are_printed(output: io.StringIO) -> None:
    print_result(BatchResult(done=["a"], skipped=["b", "c"], failed={"d": "d.svs: no mpp"}))
    text = output.getvalue()
    assert "d.svs: no mpp" in text
    assert "1 done, 2 already complete, 1 failed" in text


def test_square_brackets_in_names_and_reasons_are_printed_as_they_are(output: io.StringIO) -> None:
    """Rich reads [red] as a colour and fails on [/x]."""
    result = run_batch(["s[/x][red]"], lambda item: Outcome.DONE, name=lambda item: item, label="working")
    assert result.done == ["s[/x][red]"]
    print_result(BatchResult(failed={"s[/x]": "folder[old]/s.svs: unreadable"}))
    assert "s[/x]" in output.getvalue()
    assert "folder[old]/s.svs: unreadable" in output.getvalue()
