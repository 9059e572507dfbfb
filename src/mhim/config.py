"""Typed configuration: frozen pydantic models, unknown keys are errors, YAML plus ``key=value``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mhim.errors import ConfigError


class Settings(BaseModel):
    """Base of every configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComponentConfig(Settings):
    """Options of one registered component; ``name`` is its name in the registry."""

    name: str = ""


S = TypeVar("S", bound=BaseModel)


def validate(cls: type[S], values: Mapping[str, Any], source: str) -> S:
    """Validated settings of class ``cls``.

    Args:
        cls: the settings class.
        values: nested plain values, as read from YAML.
        source: what to name in the error (a file or a command).

    Raises:
        ConfigError: one line that lists each faulty key, and the known keys for an unknown one.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(_fault(cls, fault) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from None


def _fault(cls: type[BaseModel], fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(cls, fault["loc"][:-1])))
        return f"unknown key '{place}' (known: {known})"
    return f"{place or 'value'}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"


def _fields_at(cls: type[BaseModel], location: tuple[Any, ...]) -> Iterable[str]:
    for part in location:
        annotation = cls.model_fields[part].annotation if part in cls.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return ()
        cls = inner[0]
    return cls.model_fields


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping read from a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, gives a key twice, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """YAML without code; a key given twice is an error, where PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Nested mapping of ``a.b=value`` texts; values are read as YAML (``0.5``, ``true``, ``[1, 2]``).

    Raises:
        ConfigError: a text without ``=``, an empty part of a key, a value that is not YAML, or a key
            given both a plain value and parts below it.
    """
    nested: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {text}: expected key=value, for example --set train.epochs=50")
        try:
            parsed = yaml.load(value, _UniqueKeys)  # a SafeLoader
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is not valid YAML") from None
        node = nested
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {text}: '{part}' was already given a plain value")
        if isinstance(node.get(parts[-1]), dict) and not isinstance(parsed, dict):
            raise ConfigError(f"--set {text}: keys below '{key.strip()}' were already given; write all of them there")
        node[parts[-1]] = parsed
    return nested


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One nested mapping; later layers win, mappings are merged key by key.

    A component may be written as ``name`` or as a mapping with ``name``, and the two merge: options
    given later keep the name given earlier, and another name starts afresh, without the options of
    the component that it replaces.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            merged[key] = _merge_values(merged[key], value) if key in merged else value
    return merged


def _merge_values(old: Any, new: Any) -> Any:
    if isinstance(old, str) and isinstance(new, Mapping):
        old = {"name": old}
    elif isinstance(old, Mapping) and isinstance(new, str) and "name" in old:
        new = {"name": new}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "name" in old and new.get("name", old["name"]) != old["name"]:
        return new
    return merge(old, new)


def to_yaml(settings: BaseModel) -> str:
    """The settings as YAML text, every value resolved, in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that identify a JSON-like value or settings (SHA-256 of canonical JSON).

    Raises:
        TypeError: a value whose text does not identify it (a set, an array).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no fingerprint")
