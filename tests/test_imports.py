"""One direction of imports between packages, and no circle of files anywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.support.ranks import REPOSITORY

PACKAGE = REPOSITORY / "gaguide"
ORDER = (
    "home", "lazy", "errors", "files", "numbers", "grouping", "shipped", "ports", "html",
    "figures", "stats", "config", "distributed", "log", "trackers", "data", "model", "guidance",
    "integrations", "interventions", "attention", "engine", "checkpoint", "cost", "publish", "liveness",
    "train", "evaluate", "ablate", "heads", "slurm", "study", "report", "doctor", "cli",
)  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every module of the package → its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Modules of the package that a file imports, at any depth of its code and for type checking.

    What a package's __init__ imports for type checking only are the names that it loads lazily.
    """
    found: list[str] = []
    lazy = path.name == "__init__.py"
    for node in _statements(ast.parse(path.read_text("utf-8")), without_types=lazy):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names if alias.name.split(".")[0] == "gaguide")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "gaguide":
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                found += (name if name in modules() else node.module for name in below)
    return tuple(found)


def _statements(node: ast.AST, without_types: bool) -> Iterator[ast.AST]:
    """Every statement below a node, on request without blocks that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if without_types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            yield child
            yield from _statements(child, without_types)


def test_every_import_exists() -> None:
    unknown = [
        f"{path}: {name}" for path in modules().values() for name in imports(path) if name not in modules()
    ]
    assert not unknown, "\n".join(unknown)


def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in modules().items():
        if module == "gaguide":
            continue
        # A package's __main__ is a program that joins packages, like the commands of the CLI.
        part = "cli" if module.endswith(".__main__") else module.split(".")[1]
        assert part in ORDER, f"{part} has no place in the order"
        for name in imports(path):
            if name != "gaguide" and ORDER.index(name.split(".")[1]) > ORDER.index(part):
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_files() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("circle: " + " → ".join(reversed(error.args[1]))) from None


def test_a_packages_map_names_each_of_its_files() -> None:
    wrong = []
    for path in PACKAGE.rglob("__init__.py"):
        named = set(re.findall(r"\w+\.py\b", ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""))
        files = {each.name for each in path.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        if len(named) > 1 and named != files:
            wrong.append(f"{path.relative_to(REPOSITORY)}: {', '.join(sorted(named ^ files))}")
    assert not wrong, "\n".join(wrong)
