"""Names of a package that are imported when they are first used: without torch, commands start fast."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562): imports a name from its module and keeps it in the package.

    Names and modules are the imports below `if TYPE_CHECKING:` in the package's `__init__.py`. A name must
    not be that of a module of the package: importing the module would replace it.
    """

    @cache
    def homes() -> dict[str, str]:
        tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text("utf-8"))
        found = (node for branch in tree.body if isinstance(branch, ast.If) for node in branch.body)
        imports = (node for node in found if isinstance(node, ast.ImportFrom))
        return {name.name: str(node.module) for node in imports for name in node.names}

    def get(name: str) -> Any:
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
