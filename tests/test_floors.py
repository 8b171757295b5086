"""Imports go down only, nothing runs at import, and no file of app/ hides a package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("training", "index", "discovery", "app")  # from the ground up
MODULES = [file for floor in FLOORS for file in sorted((ROOT / floor).rglob("*.py"))]


def imported(file: Path) -> list[tuple[str, int]]:
    """Every module that a file imports anywhere in it, with the line."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            found.append((".".join([*package, node.module or ""]), node.lineno))
        elif _imports_by_name(node):
            assert isinstance(node, ast.Call)
            if node.args and isinstance(node.args[0], ast.Constant):
                found.append((str(node.args[0].value), node.lineno))
    return found


def _imports_by_name(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def upward(file: Path, floor: str) -> list[str]:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    return [
        f"{file}:{line} imports {name}"
        for name, line in imported(file)
        if name.split(".")[0] in (*above, "tests", "benchmarks")
    ]


def test_there_is_something_to_read() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in MODULES} == set(FLOORS)
    assert any(name.startswith("training") for file in MODULES for name, _ in imported(file))


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    assert upward(file, file.relative_to(ROOT).parts[0]) == []


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    for line in (
        "import discovery.sky",
        "from app import cli",
        "def f():\n    from index.store import Store",
        "import importlib\nimportlib.import_module('discovery')",
    ):
        (tmp_path / "bad.py").write_text(line)
        assert upward(tmp_path / "bad.py", "training"), line


def test_no_file_of_app_hides_a_package() -> None:
    # Streamlit puts the folder of its script first on the path
    names = {path.stem for path in (ROOT / "app").iterdir()}
    assert names.isdisjoint(FLOORS)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_runs_at_import(file: Path) -> None:
    """At the top of a module stand definitions, imports and constants; no bare calls, no loops."""
    if file.name == "main.py" and file.parent.name == "app":
        pytest.skip("the script that Streamlit runs")
    for node in ast.parse(file.read_text()).body:
        bare = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        runs = isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.Assert)
        assert not bare, f"{file}:{node.lineno} runs at import"
        assert not runs, f"{file}:{node.lineno} runs at import"
