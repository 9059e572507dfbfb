"""Configuration: unknown keys are refused at any depth, layers merge, fingerprints identify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from mhim.config import Settings, fingerprint, merge, parse_overrides, read_yaml, to_yaml, validate
from mhim.errors import ConfigError
from mhim.training.runs import RunConfig

PLACES = {"cohort": "c.csv", "features": "f", "splits": "s.csv"}


class Inner(Settings):
    depth: int = Field(1, ge=1)


class Middle(Settings):
    inner: Inner = Inner(depth=1)
    other: Inner | None = None


class Outer(Settings):
    middle: Middle = Middle()
    rate: float = 0.5


def message(values: dict[str, Any], cls: type[Settings] = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(cls, values, "mine.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_key_at_the_top_lists_the_known_ones() -> None:
    assert message({"rats": 1}) == "mine.yaml: unknown key 'rats' (known: middle, rate)"


def test_unknown_key_three_levels_down_lists_the_known_ones_of_that_level() -> None:
    assert message({"middle": {"inner": {"dept": 2}}}) == "mine.yaml: unknown key 'middle.inner.dept' (known: depth)"


def test_unknown_key_behind_an_optional_section_lists_the_known_ones() -> None:
    assert "unknown key 'middle.other.dept' (known: depth)" in message({"middle": {"other": {"dept": 2}}})


def test_every_fault_is_named_at_once() -> None:
    text = message({"rats": 1, "rate": "fast", "middle": {"inner": {"depth": 0}}})
    assert "rats" in text
    assert "rate: " in text
    assert "middle.inner.depth: " in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value: float) -> None:
    assert "rate: Input should be a finite number" in message({"rate": value})


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "mhim-v1", "momemtum": 0.9}, "method 'mhim-v1': unknown key 'momemtum' (known: consistency_weight, "),
        ({"name": "mhim-v1", "mask": {"name": "ham", "ratio": 0.1}}, "mask 'ham': unknown key 'ratio' (known: "),
        ({"name": "mhim-v1", "mask": "hamm"}, "unknown mask 'hamm' (known: ham, l-ham, lr-ham, r-ham"),
        ({"name": "mhim-v1", "mask": {"ratio": 0.1}}, "mask: options without a name; add 'name' (known: ham, "),
        ("mhim", "unknown method 'mhim' (known: "),
    ],
)
def test_faults_inside_components_name_the_component_and_what_it_knows(method: Any, expected: str) -> None:
    assert expected in message({**PLACES, "method": method}, RunConfig)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": {"name": "abmil", "gated": True}, "method": "supervised", "seed": 3},
        {"method": {"name": "mhim-v1", "mask": {"name": "lr-ham", "mask_ratio_low": 0.3}}, "train": {"lr": 1e-05}},
    ],
)
def test_resolved_yaml_of_a_run_reads_back_equal(values: dict[str, Any], tmp_path: Path) -> None:
    config = validate(RunConfig, {**PLACES, **values}, "test")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = validate(RunConfig, read_yaml(tmp_path / "config.yaml"), "test")
    assert again == config
    assert type(again.method) is type(config.method)
    assert to_yaml(again) == to_yaml(config)


def test_resolved_yaml_holds_the_options_of_nested_components() -> None:
    method = {"name": "mhim-v1", "mask": {"name": "lr-ham", "mask_ratio_low": 0.3}}
    written = yaml.safe_load(to_yaml(validate(RunConfig, {**PLACES, "method": method}, "test")))
    assert written["method"]["mask"]["mask_ratio_low"] == 0.3
    assert written["method"]["mask"]["name"] == "lr-ham"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=0.5", {"a": {"b": {"c": 0.5}}}),
        ("a=true", {"a": True}),
        ("a=", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a={b: 2}", {"a": {"b": 2}}),
        ("a='001'", {"a": "001"}),
        ("a=../shared/x y.csv", {"a": "../shared/x y.csv"}),
    ],
)
def test_override_values_are_read_as_yaml(text: str, expected: dict[str, Any]) -> None:
    assert parse_overrides([text]) == expected


def test_an_exponent_without_a_dot_still_reaches_a_number() -> None:
    """YAML 1.1 reads 1e-4 as text; the settings read that text as a number."""
    values = {**PLACES, **parse_overrides(["train.lr=1e-4"])}
    assert validate(RunConfig, values, "--set").train.lr == 1e-4


def test_overrides_of_one_section_are_gathered() -> None:
    assert parse_overrides(["a.b=1", "a.c=2", "d=3"]) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_the_last_override_of_one_key_wins() -> None:
    assert parse_overrides(["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("texts", [["a"], ["=1"], [".a=1"], ["a.=1"], ["a..b=1"], ["a=[1"], ["a={b: 1, b: 2}"]])
def test_malformed_overrides_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--set .*(key=value|not valid YAML)"):
        parse_overrides(texts)


@pytest.mark.parametrize("texts", [["a=1", "a.b=2"], ["a.b=2", "a=1"]])
def test_a_plain_value_and_keys_below_it_conflict(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="already given"):
        parse_overrides(texts)


def test_later_layers_win_key_by_key() -> None:
    layers = ({"a": {"b": 1, "c": 1}, "d": 1}, {"a": {"b": 2}}, {"a": {"c": None}, "e": 3})
    assert merge(*layers) == {"a": {"b": 2, "c": None}, "d": 1, "e": 3}


def test_merging_changes_no_layer() -> None:
    first = {"a": {"b": 1}}
    merge(first, {"a": {"b": 2}})
    assert first == {"a": {"b": 1}}


def test_options_keep_the_component_that_an_earlier_layer_names() -> None:
    """``model: transmil`` in the file and ``--set model.dim=64`` must not fall back to the default model."""
    assert merge({"model": "transmil"}, {"model": {"dim": 64}}) == {"model": {"name": "transmil", "dim": 64}}


def test_naming_the_same_component_again_keeps_its_options() -> None:
    written = {"model": {"name": "abmil", "gated": True}}
    assert merge(written, {"model": {"name": "abmil"}}) == written
    assert merge(written, {"model": "abmil"}) == written


def test_another_component_starts_without_the_options_of_the_one_it_replaces() -> None:
    written = {"model": {"name": "abmil", "gated": True}}
    assert merge(written, {"model": {"name": "dsmil"}}) == {"model": {"name": "dsmil"}}
    assert merge(written, {"model": "dsmil"}) == {"model": {"name": "dsmil"}}


nested = st.recursive(
    st.integers() | st.booleans() | st.none() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abcd"), nested, max_size=4)


@settings(deadline=None, max_examples=50)
@given(mappings)
def test_merging_with_nothing_or_with_itself_changes_nothing(values: dict[str, Any]) -> None:
    assert merge({}, values) == merge(values, {}) == merge(values, values) == values


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a: [1, 2", "not valid YAML"),
        (b"- 1\n- 2\n", "expected 'key: value' lines"),
        (b"just text", "expected 'key: value' lines"),
        (b"a: \xff\xfe", "not valid YAML"),
        (b"a: 1\na: 2\n", "'a' is given twice"),
        (b"a:\n  b: 1\n  b: 2\n", "'b' is given twice"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_faulty_yaml_is_one_line_that_names_the_file(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_yaml_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_empty_yaml_is_an_empty_mapping_and_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    assert read_yaml(tmp_path / "marked.yaml") == {"seed": 1}


@settings(deadline=None, max_examples=50)
@given(mappings)
def test_fingerprint_ignores_the_order_of_keys(values: dict[str, Any]) -> None:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert fingerprint(turned(values)) == fingerprint(values)


@settings(deadline=None, max_examples=50)
@given(mappings, mappings)
def test_fingerprint_tells_different_values_apart(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert (fingerprint(first) == fingerprint(second)) == (repr_sorted(first) == repr_sorted(second))


def repr_sorted(value: Any) -> str:
    """True and 1 are equal in Python but not in a configuration."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{repr_sorted(value[key])}" for key in sorted(value)) + "}"
    return repr(value)


def test_fingerprint_is_the_same_in_another_process() -> None:
    values = {"b": [1, 2.5, None, True], "a": {"x": "ä"}}
    code = f"from mhim.config import fingerprint; print(fingerprint({values!r}))"
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert found == [fingerprint(values)] * 2


def test_fingerprint_sees_settings_inside_a_list() -> None:
    assert fingerprint([Inner(depth=1)]) == fingerprint([{"depth": 1}])
    assert fingerprint([Inner(depth=1)]) != fingerprint([Inner(depth=2)])


def test_what_has_no_order_has_no_fingerprint() -> None:
    with pytest.raises(TypeError, match="set has no fingerprint"):
        fingerprint({"a": {1, 2}})


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner(depth=1).depth = 2
