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

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
    return values


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Nested mapping of ``a.b=value`` texts; values are read as YAML (``0.5``, ``true``, ``[1, 2]``).

    Raises:
        ConfigError: a text without ``=``.
    """
    nested: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text}: expected key=value, for example --set train.epochs=50")
        node = nested
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {text}: '{parent}' was already given a plain value")
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is not valid YAML") from None
    return nested


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One nested mapping; later layers win, mappings are merged key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def to_yaml(settings: BaseModel) -> str:
    """The settings as YAML text, every value resolved, in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that identify a JSON-like value or settings (SHA-256 of canonical JSON)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
