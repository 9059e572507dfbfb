"""mhim bench: its file, its gate on made-up numbers, and a small run. No test is about how long anything takes."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhim.bench.meter import Meter
from mhim.bench.result import BenchConfig, BenchResult, EntryResult, Measured, changes, read_result
from mhim.bench.run import run_bench, summarise
from mhim.bench.tables import change_table, cost_table, growth_table
from mhim.bench.worker import Said, Task, _serve, map_rows, rows_needed
from mhim.cli import app
from mhim.cli.shared import run_app
from mhim.errors import ArtefactError, ConfigError
from mhim.models import count_parameters, models

MIB = 1 << 20


def measured(seconds: float, peak: float | None = 100 * MIB, grow: float = 1.0) -> Measured:
    """A phase whose epochs take ``seconds``, and whose bags take N^grow."""
    by_size = {size: seconds * (size / 1000) ** grow for size in (1000, 4000)}
    return Measured(
        epoch_wall_s=(2 * seconds, 3 * seconds, 90 * seconds),
        epoch_cpu_s=(seconds, seconds / 2, 9 * seconds),
        step_wall_s=by_size,
        step_cpu_s=by_size,
        peak_bytes=peak,
        step_peak_bytes=dict.fromkeys(by_size, peak),
        resident_bytes=(0.0,) * 4,
    )


def result(**entries: tuple[float, float]) -> BenchResult:
    """A made-up result: entry -> seconds of training, seconds of inference."""
    config = BenchConfig.model_validate({"models": [name.replace("_", "-") for name in entries], "sizes": [1000, 4000]})
    return BenchResult(
        config=config,
        device="cpu",
        environment={},
        entries={
            name.replace("_", "-"): EntryResult(parameters=7, train=measured(train), infer=measured(infer))
            for name, (train, infer) in entries.items()
        },
    )


def by_name(found: list[Any]) -> dict[tuple[str, str], Any]:
    return {(each.entry, each.what): each for each in found}


def test_a_slower_machine_changes_no_ratio() -> None:
    before = result(yardstick=(1, 0.5), abmil=(2, 1), mhim_abmil=(3, 1))
    now = result(yardstick=(7, 4), abmil=(14, 8), mhim_abmil=(21, 8))
    found = changes(now, before, "yardstick", 0.1)
    assert {each.factor for each in found} == {1.0}
    assert len(found) == 8  # two entries, two phases, time and memory


def test_only_the_ratio_that_worsened_by_more_than_the_tolerance_is_reported() -> None:
    before = result(yardstick=(1, 1), abmil=(2, 1), mhim_abmil=(3, 1))
    now = result(yardstick=(2, 1), abmil=(4.36, 1), mhim_abmil=(6.66, 0.1))
    found = by_name(changes(now, before, "yardstick", 0.1))
    assert found["abmil", "training time"].factor == pytest.approx(1.09)
    assert found["mhim-abmil", "training time"].before == pytest.approx(3)
    assert found["mhim-abmil", "training time"].now == pytest.approx(3.33)
    assert [name for name, each in found.items() if each.is_worse] == [("mhim-abmil", "training time")]
    assert found["mhim-abmil", "inference time"].factor == pytest.approx(0.1)


@given(old=st.floats(0.01, 100), new=st.floats(0.01, 100), base=st.floats(0.01, 100), tolerance=st.floats(0, 2))
def test_the_gate_is_the_ratio_of_ratios(old: float, new: float, base: float, tolerance: float) -> None:
    found = by_name(
        changes(result(abmil=(base, 1), max=(new, 1)), result(abmil=(1, 1), max=(old, 1)), "abmil", tolerance)
    )
    change = found["max", "training time"]
    assert change.factor == pytest.approx(new / base / old)
    assert change.is_worse == (change.factor > 1 + tolerance)


def test_memory_is_judged_where_it_is_more_than_the_process_s_own_noise() -> None:
    def with_peak(peak: float) -> BenchResult:
        entries = {
            "yardstick": EntryResult(parameters=1, train=measured(1, 64 * MIB)),
            "abmil": EntryResult(parameters=1, train=measured(1, peak)),
        }
        return result(yardstick=(1, 1), abmil=(1, 1)).model_copy(update={"entries": entries})

    grown = by_name(changes(with_peak(96 * MIB), with_peak(48 * MIB), "yardstick", 0.5))
    assert grown["abmil", "training memory"].factor == pytest.approx(2)
    assert grown["abmil", "training memory"].is_worse
    small = by_name(changes(with_peak(31 * MIB), with_peak(1 * MIB), "yardstick", 0.5))
    assert list(small) == [("abmil", "training time")]
    crossed = by_name(changes(with_peak(40 * MIB), with_peak(1 * MIB), "yardstick", 0.5))
    assert crossed["abmil", "training memory"].factor == pytest.approx(40 / 32)


def test_what_was_measured_otherwise_is_not_compared() -> None:
    before, now = result(abmil=(1, 1), max=(1, 1)), result(abmil=(1, 1), max=(1, 1))
    other = before.model_copy(update={"config": before.config.model_copy(update={"threads": 2, "in_dim": 8})})
    with pytest.raises(ConfigError, match=r"other settings \(in_dim 8, threads 2\)"):
        changes(now, other, "abmil", 0.1)
    with pytest.raises(ConfigError, match=r"other settings \(wall time\)"):
        changes(now, before.model_copy(update={"device": "NVIDIA H100"}), "abmil", 0.1)
    with pytest.raises(ConfigError, match="--reference dsmil: is not in this run"):
        changes(now, before, "dsmil", 0.1)


def test_an_entry_that_is_new_or_failed_has_no_ratio() -> None:
    before = result(abmil=(1, 1), max=(1, 1))
    before.entries["mean"] = EntryResult(failed="train: no memory")
    now = result(abmil=(1, 1), max=(1, 1), mean=(1, 1), dsmil=(1, 1))
    assert {each.entry for each in changes(now, before, "abmil", 0.1)} == {"max"}


@pytest.mark.parametrize("exponent", [1.0, 2.0, 0.3])
def test_growth_is_the_exponent_between_the_two_largest_sizes(exponent: float) -> None:
    assert measured(1, grow=exponent).growth("cpu") == pytest.approx(exponent)


def test_rounds_become_medians_by_size_and_sums_by_epoch() -> None:
    """The warm-up gives the peaks by size, of each size's first bag, and no time."""

    def said(seconds: float, peak: float) -> Said:
        return Said(seconds, 10 * seconds, peak, 2 * peak)

    warm_up = [(10, said(99, 1)), (10, said(99, 4)), (20, said(99, 3))]
    rounds = [
        [(10, said(1, 2)), (20, said(5, 9)), (10, said(2, 1))],
        [(10, said(3, 1)), (20, said(7, 1)), (10, said(9, 2))],
    ]
    found = summarise([warm_up, *rounds])
    assert found.epoch_wall_s == (8, 19)
    assert found.epoch_cpu_s == (80, 190)
    assert found.step_wall_s == {10: 2.5, 20: 6}
    assert found.step_peak_bytes == {10: 1, 20: 3}
    assert found.peak_bytes == 9
    assert found.resident_bytes == (6, 2, 4)


def test_the_file_reads_back_equal_and_another_is_refused(tmp_path: Path) -> None:
    kept = result(yardstick=(1, 1), abmil=(2, 3))
    path = tmp_path / "a.json"
    path.write_text(kept.model_dump_json())
    assert read_result(path) == kept
    path.write_text('{"kind": "other"}')
    with pytest.raises(ArtefactError, match=r"a\.json: not a result of mhim bench"):
        read_result(path)
    content = kept.model_dump(mode="json")
    path.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(ConfigError, match=r"a\.json: version"):
        read_result(path)


def test_tables_say_what_was_measured() -> None:
    kept = result(yardstick=(1, 1), abmil=(2, 4))
    header, rows = cost_table(kept, "yardstick")
    assert header[2] == "training, CPU s an epoch"
    assert rows[1] == ["abmil", "7", "2.000 (2.00x)", "100", "4.000 (4.00x)", "100"]
    _, growth = growth_table(kept, "train")
    assert growth[1] == ["abmil", "2000.0, 100", "8000.0, 100", "N^1.00"]
    found = changes(result(yardstick=(1, 1), abmil=(3, 4)), kept, "yardstick", 0.2)
    assert change_table(found, "yardstick")[1][0] == [
        "abmil",
        "training time",
        "2.000",
        "3.000",
        "+50.0%",
        "worse than +20%",
    ]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"models": ["abmill"]}, "no such aggregator"),
        ({"sizes": [0]}, "a bag needs an instance"),
        ({"sizes": []}, "at least 1 item"),
        ({"phases": ["both"]}, "'train' or 'infer'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], fault: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=fault):
        BenchConfig.model_validate({"models": ["abmil"], **values})


def test_an_epoch_has_a_bag_of_each_size_in_turn() -> None:
    def epoch(sizes: list[int], bags: int) -> tuple[int, ...]:
        return BenchConfig.model_validate({"models": ["abmil"], "sizes": sizes, "bags": bags}).epoch

    assert epoch([30, 10, 10], 5) == (10, 30, 10, 30, 10)
    assert epoch([1, 2, 3], 1) == (1, 2, 3)


def test_the_meter_counts_what_is_held_and_forgets_a_peak() -> None:
    """On Linux: a block that is written is seen at its size, and after it is gone only by the peak.

    The block is mapped, not allocated: a heap that other tests have asked to keep its blocks would keep this one.
    """
    meter = Meter(torch.device("cpu"))
    meter.rest()
    if meter.peak() is None:
        pytest.skip("this system does not say how much memory a process uses")
    block = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, 64 * MIB, mmap.PAGESIZE):
        block[page] = 1
    assert 60 * MIB < (meter.peak() or 0) < 96 * MIB
    block.close()
    assert (meter.peak() or 0) > 60 * MIB
    meter.forget_peak()
    assert (meter.peak() or 0) < 32 * MIB


BROKEN = """
from mhim.errors import FeatureError
from mhim.models import ABMIL, models

@models.register("broken-in-bench")
class Broken(ABMIL):
    def losses(self, output, label):
        raise FeatureError("too much")
"""


@dataclass
class Line:
    """Stands for the pipe to the parent: what is asked, and what was answered."""

    asked: list[Any]
    answered: list[Any] = field(default_factory=list)

    def recv(self) -> Any:
        return self.asked.pop(0)

    def send(self, answer: Any) -> None:
        self.answered.append(answer)


@pytest.mark.parametrize("entry", ["yardstick", "mhim-abmil", "transmil"])
@pytest.mark.parametrize("phase", ["train", "infer"])
def test_a_worker_answers_each_bag_with_numbers(entry: str, phase: Any, tmp_path: Path) -> None:
    """Parameters are those of the deployed model, whatever trains it."""
    config = BenchConfig.model_validate({"models": [entry], "sizes": [40, 90], "in_dim": 12})
    rows = torch.randn(rows_needed(config), 12, generator=torch.Generator().manual_seed(0)).half()
    (tmp_path / "rows").write_bytes(rows.numpy().tobytes())
    assert torch.equal(map_rows(tmp_path / "rows", config), rows)
    line = Line([(0, 40), (1, 90), None])
    threads = torch.get_num_threads()
    _serve(Task(entry, phase, config, tmp_path / "rows", ()), line)  # pyright: ignore[reportArgumentType]
    torch.set_num_threads(threads)
    ready, *said = line.answered
    name = entry.removeprefix("mhim-")
    own = 12 * 512 + 512 + 2 * 512 + 2
    assert ready.parameters == (
        own if entry == "yardstick" else count_parameters(models.build(models.parse(name), 12, 2))
    )
    assert len(said) == 2
    assert all(each.wall_s > 0 and each.cpu_s >= 0 for each in said)


def test_a_small_run_keeps_what_works_and_says_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes: numbers of every bag, and a failure is one line and exit code 1."""
    (tmp_path / "mine.py").write_text(BROKEN)
    arguments = ["mhim", "bench", "--models", "yardstick,broken-in-bench", "--sizes", "40,90", "--bags", "3"]
    arguments += ["--rounds", "1", "--dim", "12", "--phase", "train", "-o", str(tmp_path / "r.json")]
    arguments += ["--plugin", str(tmp_path / "mine.py")]
    monkeypatch.setattr("sys.argv", [*arguments, "--dry-run"])
    assert run_app(app) == 0
    assert "would measure 2 entries" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*arguments, "--json"])
    assert run_app(app) == 1
    said = capsys.readouterr()
    kept = read_result(tmp_path / "r.json")
    assert kept == BenchResult.model_validate_json(said.out)
    assert kept.entries["broken-in-bench"].failed == "train: too much"
    one = kept.entries["yardstick"].train
    assert one is not None
    assert set(one.step_wall_s) == set(one.step_peak_bytes) == {40, 90}
    assert one.epoch_wall_s[0] == pytest.approx(2 * one.step_wall_s[40] + one.step_wall_s[90])
    monkeypatch.setattr("sys.argv", arguments)
    assert run_app(app) == 1
    assert "r.json: exists; give another --out, or --overwrite" in capsys.readouterr().err


def test_no_such_device_is_one_line() -> None:
    config = BenchConfig.model_validate({"models": ["mean"], "device": "nonsense"})
    with pytest.raises(ConfigError, match="--device nonsense"):
        run_bench(config)


def test_the_verb_s_exit_code_is_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mhim.bench.run

    before = tmp_path / "before.json"
    before.write_text(result(yardstick=(1, 1), abmil=(2, 1)).model_dump_json())
    now = {"slower": result(yardstick=(1, 1), abmil=(3, 1)), "as before": result(yardstick=(5, 5), abmil=(10, 5))}
    for name, code in (("slower", 1), ("as before", 0)):
        monkeypatch.setattr(mhim.bench.run, "run_bench", lambda config, step, name=name: now[name])
        arguments = ["--models", "yardstick,abmil", "--sizes", "1000,4000", "--against", str(before)]
        monkeypatch.setattr("sys.argv", ["mhim", "bench", *arguments])
        assert run_app(app) == code
