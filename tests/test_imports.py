"""One direction of imports: a package imports only those that stand before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.ranks import REPOSITORY

ORDER = (
    "errors", "config", "dist", "log", "data", "model", "guidance", "attention", "checkpoint", "train",
    "evaluate", "plan", "slurm", "study", "report", "doctor", "cli",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Top-level names below `gaguide` that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "gaguide":
                yield from (alias.name for alias in node.names)
            elif node.module and node.module.startswith("gaguide."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gaguide."))


def test_imports_point_one_way() -> None:
    package = REPOSITORY / "gaguide"
    wrong = []
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in ORDER, f"{part} has no place in the order"
        for name in imports(path):
            if name in ORDER and ORDER.index(name) > ORDER.index(part):
                wrong.append(f"{path.relative_to(package)} imports gaguide.{name}")
    assert not wrong, "\n".join(wrong)
