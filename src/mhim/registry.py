"""One registry per kind of component that users add: aggregator, encoder, mask strategy, method."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from mhim.config import ComponentConfig, fingerprint, validate
from mhim.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """Names to classes; every class has a nested ``Config(ComponentConfig)``.

    Args:
        kind: the word used in messages ("model", "encoder", ...).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator that adds a class under ``name``.

        Raises:
            ConfigError: the name is taken by another class.
        """

        def add(cls: type[C]) -> type[C]:
            known = self._classes.get(name)
            if known is not None and _place(known) != _place(cls):
                raise ConfigError(f"{self.kind} '{name}' is registered twice: {_place(known)}, {_place(cls)}")
            self._classes[name] = cast("type[T]", cls)
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            raise ConfigError(f"unknown {self.kind} '{name}' (known: {', '.join(self)})")
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def parse(self, value: object) -> ComponentConfig:
        """The component's validated configuration, from a name, a mapping with ``name``, or a configuration.

        Raises:
            ConfigError: unknown name or key, a value out of range, or another component's configuration.
        """
        if isinstance(value, ComponentConfig):
            if type(value) is not self._config(value.name):
                raise ConfigError(
                    f"{self.kind} '{value.name}' has another configuration than {type(value).__qualname__}"
                )
            return value
        options: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"name": value}
        if "name" not in options:
            raise ConfigError(f"{self.kind}: options without a name; add 'name' (known: {', '.join(self)})")
        name = str(options["name"])
        return validate(self._config(name), options, f"{self.kind} '{name}'")

    def _config(self, name: str) -> type[ComponentConfig]:
        return getattr(self[name], "Config")  # noqa: B009  (Config is not on T)

    def build(self, config: ComponentConfig, *args: Any, **kwargs: Any) -> T:
        """An instance of the component that ``config`` names, called as ``cls(config, ...)``."""
        build = cast("Callable[..., T]", self[config.name])
        return build(config, *args, **kwargs)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_loaded: dict[Path, None] = {}


def load_plugin(path: Path) -> None:
    """Run a Python file that registers components (the user's own code, on the user's request); once per path.

    Raises:
        ConfigError: the file does not exist, is not Python, or fails.
    """
    path = path.resolve()
    if path in _loaded:
        return
    if not path.is_file():
        raise ConfigError(f"{path}: no such plugin file")
    name = f"mhim_plugin_{path.stem}_{fingerprint(str(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file (*.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plugin may raise anything; raised again with its name
        del sys.modules[name]
        raise ConfigError(f"{path}: the plugin failed to load, {type(error).__name__}: {error}") from error
    _loaded[path] = None


def loaded_plugins() -> tuple[Path, ...]:
    """Plugin files of this process, in the order of loading; a worker process loads them again."""
    return tuple(_loaded)


def load_installed_plugins() -> None:
    """Import what other packages offer under the entry point group ``mhim.plugins``.

    Raises:
        ConfigError: one of them fails; names the package's entry point.
    """
    for entry in entry_points(group="mhim.plugins"):
        try:
            entry.load()
        except Exception as error:  # likewise
            raise ConfigError(
                f"installed plugin {entry.name} ({entry.value}) failed to load, {type(error).__name__}: {error}"
            ) from error
