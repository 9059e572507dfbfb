"""Registries: names are unique, plugins add names, faults are one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import mhim.registry as registry_module
from mhim.config import ComponentConfig
from mhim.errors import ConfigError
from mhim.models import MILModel, models
from mhim.registry import Registry, load_installed_plugins, load_plugin, loaded_plugins

PLUGIN = """
from torch import Tensor, nn
from mhim.config import ComponentConfig
from mhim.models.contract import MILModel, MILOutput, models

@models.register("{name}")
class Sum(MILModel):
    class Config(ComponentConfig):
        scale: float = 2.0
    def __init__(self, config, in_dim, n_classes):
        super().__init__(config, in_dim, n_classes)
        self.head = nn.Linear(in_dim, n_classes)
"""


class Thing:
    class Config(ComponentConfig):
        size: int = 1

    def __init__(self, config: ComponentConfig, *args: object) -> None:
        self.config, self.args = config, args


class Other:
    class Config(ComponentConfig):
        pass


@pytest.fixture
def things() -> Registry[Thing]:
    registry: Registry[Thing] = Registry("thing")
    registry.register("small")(Thing)
    return registry


@pytest.fixture
def plugin_models() -> Iterator[Registry[MILModel]]:
    """The registry of models, put back afterwards."""
    before, loaded = dict(models._classes), dict(registry_module._loaded)
    yield models
    models._classes.clear()
    models._classes.update(before)
    registry_module._loaded.clear()
    registry_module._loaded.update(loaded)


def test_a_name_given_twice_names_both_classes(things: Registry[Thing]) -> None:
    with pytest.raises(ConfigError, match=r"thing 'small' is registered twice: .*Thing, .*Other"):
        things.register("small")(Other)  # pyright: ignore[reportArgumentType]
    assert things["small"] is Thing


def test_a_class_of_the_same_name_in_another_module_does_not_replace_a_registered_one(things: Registry[Thing]) -> None:
    impostor = type("Thing", (), {"Config": Thing.Config, "__module__": "elsewhere", "__qualname__": "Thing"})
    with pytest.raises(ConfigError, match="registered twice"):
        things.register("small")(impostor)


def test_unknown_names_list_the_known_ones_sorted(things: Registry[Thing]) -> None:
    things.register("big")(Other)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"^unknown thing 'tall' \(known: big, small\)$"):
        things["tall"]


def test_a_name_a_mapping_and_a_configuration_give_the_same(things: Registry[Thing]) -> None:
    config = things.parse("small")
    assert config == things.parse({"name": "small", "size": 1}) == things.parse(config) == Thing.Config(name="small")


def test_another_components_configuration_is_refused(things: Registry[Thing]) -> None:
    with pytest.raises(ConfigError, match="another configuration"):
        things.parse(Other.Config(name="small"))


def test_building_calls_the_class_with_its_configuration(things: Registry[Thing]) -> None:
    built = things.build(things.parse({"name": "small", "size": 3}), "x")
    assert (built.config, built.args) == (Thing.Config(name="small", size=3), ("x",))


def test_a_plugin_file_adds_a_model_that_its_name_finds(tmp_path: Path, plugin_models: Registry[MILModel]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="sum-of-mine"))
    load_plugin(path)
    config = plugin_models.parse({"name": "sum-of-mine", "scale": 3})
    assert config.model_dump() == {"name": "sum-of-mine", "scale": 3.0}
    assert plugin_models.build(config, 4, 2).in_dim == 4
    assert path in loaded_plugins()


def test_a_plugin_is_run_once(tmp_path: Path, plugin_models: Registry[MILModel]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="sum-of-mine"))
    load_plugin(path)
    first = plugin_models["sum-of-mine"]
    load_plugin(path)
    assert plugin_models["sum-of-mine"] is first


def test_two_plugins_of_one_file_name_do_not_replace_each_other(
    tmp_path: Path, plugin_models: Registry[MILModel]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.format(name="sum-of-mine"))
    load_plugin(tmp_path / "a" / "mine.py")
    with pytest.raises(ConfigError, match=r"b/mine\.py: the plugin failed .*registered twice"):
        load_plugin(tmp_path / "b" / "mine.py")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("mine.py", "import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("mine.py", "def broken(:", "SyntaxError"),
        ("mine.txt", "x = 1", "not a Python file"),
    ],
)
def test_a_plugin_that_fails_is_one_line_that_names_the_file(name: str, text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plugin(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [module for module in sys.modules.values() if getattr(module, "__file__", None) == str(path)]
    assert path not in loaded_plugins()


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.py: no such plugin file"):
        load_plugin(tmp_path / "none.py")


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint("theirs", value, "mhim.plugins")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry] if group == "mhim.plugins" else [])


def test_installed_plugins_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_models: Registry[MILModel]
) -> None:
    (tmp_path / "installed_mine.py").write_text(PLUGIN.format(name="installed-sum"))
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "installed_mine")
    load_installed_plugins()
    assert "installed-sum" in list(plugin_models)


def test_an_installed_plugin_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "nosuch_plugin_package:Thing")
    with pytest.raises(ConfigError, match=r"installed plugin theirs \(nosuch_plugin_package:Thing\) failed"):
        load_installed_plugins()
