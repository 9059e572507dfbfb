"""Who may import whom, and how large a module and a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mhim

SOURCE = Path(mhim.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("mhim", "errors"),
    ("config", "artefacts"),
    ("registry", "batch", "pool", "presets", "provenance", "kernels", "heap", "seal"),
    ("bag", "cohort"),
    ("sites",),
    ("resume", "partial_bag", "inspection", "splits", "metrics", "froc", "annotations", "survival", "models", "masks"),
    (
        "resampling",
        "delong",
        "protocols",
        "split_files",
        "calibration",
        "conformal",
        "slides",
        "synth",
        "methods",
        "checkpoint",
        "entries",
    ),
    ("paired", "doctor", "run_statistics", "tissue", "tile_reader", "weights"),
    ("tiles", "encoders"),
    ("tile_io", "foreign"),
    ("tile_preview",),
    ("tile_sheet",),
    ("tiling", "encode", "convert", "training"),
    (
        "case_level",
        "evaluation",
        "reproduce",
        "repack",
    ),
    ("paired_runs",),
    ("maps", "ablation", "robustness", "bench"),
    ("ablation_tables", "exports"),
    ("report",),
    ("demo", "compare", "papers"),
    ("cli",),
    ("__main__",),
)
"""A module or package of ``mhim`` imports from earlier lines only; those of one line do not know each other.

``mhim`` is the package itself: the version, and public names that are imported when they are first used.
"""

PUBLIC = {"weights"}
MODULE_LINES, FUNCTION_LINES = 400, 50

LAYER_OF = {name: index for index, layer in enumerate(LAYERS) for name in layer}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit_of(dotted: str) -> str:
    """The layer table's name of a module: ``mhim.models.abmil`` -> ``models``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "mhim"


def dotted_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Dotted names of our modules that a syntax tree imports, also inside functions, not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "mhim")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            source = node.module or ""
            if source.split(".")[0] == "mhim":
                yield from (
                    f"{source}.{alias.name}" if f"{source}.{alias.name}" in names else source for alias in node.names
                )
        yield from imported(node, names)


def edges() -> set[tuple[str, str, str]]:
    """(importing module, its unit, imported unit) over the whole package, except inside a unit."""
    names = {dotted_name(path) for path in modules()}
    return {
        (dotted_name(path), unit_of(dotted_name(path)), unit_of(target))
        for path in modules()
        for target in imported(ast.parse(path.read_text()), names)
        if unit_of(target) != unit_of(dotted_name(path))
    }


def test_every_module_has_its_place_in_one_layer() -> None:
    found = {unit_of(dotted_name(path)) for path in modules()}
    assert found - LAYER_OF.keys() == set(), "place the new module in LAYERS"
    assert len(LAYER_OF) == sum(map(len, LAYERS))


def test_imports_point_one_way() -> None:
    wrong = []
    for module, unit, target in sorted(edges()):
        allowed = target in PUBLIC if unit == "mhim" else LAYER_OF.get(target, 99) < LAYER_OF.get(unit, 0)
        if not allowed:
            wrong.append(f"{module} imports {target}")
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import mhim.bag", ["mhim.bag"]),
        ("from mhim import bag", ["mhim.bag"]),
        ("from mhim.bag import Bag", ["mhim.bag"]),
        ("def f():\n    from mhim.bag import Bag", ["mhim.bag"]),
        ("if x:\n    try:\n        import mhim.bag as b\n    except E:\n        pass", ["mhim.bag"]),
        ("if TYPE_CHECKING:\n    from mhim.bag import Bag", []),
        ("if typing.TYPE_CHECKING:\n    from mhim.bag import Bag", []),
        ("import numpy\nfrom pathlib import Path", []),
    ],
)
def test_the_test_sees_imports_wherever_they_hide(text: str, expected: list[str]) -> None:
    assert list(imported(ast.parse(text), {"mhim.bag"})) == expected


def is_verb(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the signature declares command-line options, one a line: it is a table, not code."""
    return "typer." in ast.unparse(node.args)


def test_modules_and_functions_stay_small() -> None:
    large = []
    for path in modules():
        text = path.read_text()
        if len(text.splitlines()) > MODULE_LINES:
            large.append(f"{dotted_name(path)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0].lineno if is_verb(node) else node.lineno
                lines = (node.end_lineno or 0) - first + 1
                if lines > FUNCTION_LINES:
                    large.append(f"{dotted_name(path)}.{node.name}: {lines} lines")
    assert large == []
