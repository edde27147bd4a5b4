"""Task files of lm-evaluation-harness as trees: YAML with `include` and `!function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gaguide.config.yaml_tree import check_aliases
from gaguide.errors import UserError, first_line

_TASK_KEYS = {"task", "output_type", "dataset_path", "class", "include", "custom_dataset"}
"""Keys found in every task file of the harness (one or more of them), and never in ours."""


@dataclass(frozen=True)
class FunctionReference:
    """`!function module.name`: Python code that a task file wants to run. It runs when it is loaded."""

    name: str
    """As written, such as `utils.process_docs`."""
    folder: Path
    """Folder of the task file."""

    @property
    def file(self) -> Path:
        """The Python file next to the task file, whether it exists or not."""
        module, _, _ = self.name.rpartition(".")
        return self.folder / f"{module.replace('.', '/')}.py"

    def load(self) -> Any:
        """The function (or class); raises `UserError` where it cannot be imported."""
        module, _, function = self.name.rpartition(".")
        try:
            found = _load_file(self.file) if self.file.exists() else importlib.import_module(module)
            return getattr(found, function)
        except Exception as error:  # whatever the user's code raises
            problem = f"cannot be imported ({type(error).__name__}: {first_line(error)})"
            remedy = "correct the function's module, or install what it imports"
            raise UserError.of(f"!function {self.name}", problem, remedy, str(self.file)) from None


def _load_file(path: Path) -> Any:
    path = path.resolve()
    name = str(path.with_suffix(""))  # as the harness names modules outside its own folder
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml a thousand files take a minute


class _Loader(_Base):
    """Safe, with `!function`, which becomes a `FunctionReference`; refuses aliases that multiply."""

    folder = Path()

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            check_aliases(node)
        return node

    def construct_function(self, node: Any) -> FunctionReference:
        return FunctionReference(str(self.construct_scalar(node)), self.folder)


_Loader.add_constructor("!function", _Loader.construct_function)


def is_harness_tree(tree: Mapping[str, Any]) -> bool:
    """Whether a task file is in the harness's form: ours has a `name`."""
    return "name" not in tree and ("group" in tree or not _TASK_KEYS.isdisjoint(tree))


def read_source(path: Path, cache: dict[Path, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The keys and values of a task file with those of the files that it includes; its own come first.

    cache: files read before, by path. Raises `UserError` where a file is missing or not a YAML mapping.
    """
    return dict(_read(path.expanduser().resolve(), {} if cache is None else cache, ()))


def _read(path: Path, cache: dict[Path, dict[str, Any]], above: tuple[Path, ...]) -> dict[str, Any]:
    if path in cache:
        return cache[path]
    if path in above:
        raise UserError.of("task file", "includes itself", "remove the include", str(path))
    tree = read_tree(path)
    includes = tree.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        merged |= _read((path.parent / str(name)).resolve(), cache, (*above, path))
    merged.pop("task_list", None)
    cache[path] = merged | tree
    return cache[path]


def read_tree(path: Path) -> dict[str, Any]:
    """The keys and values of a task file without those of the files that it includes; `UserError`."""
    loader = type("Loader", (_Loader,), {"folder": path.parent})
    try:
        tree: Any = yaml.load(path.read_bytes(), loader)  # a safe loader, see `_Loader`
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError.of("task file", problem, "give the path of a YAML file", str(path)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = f"is not valid YAML: {error}"
        raise UserError.of("task file", problem, "correct the file", str(path)) from None
    if not isinstance(tree, dict):
        raise UserError.of("task file", "must be a mapping of fields to values", "see the docs", str(path))
    return {str(key): value for key, value in tree.items()}
