"""From YAML and dotted overrides to a checked RunConfig; every fault is reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gaguide.config.run import RunConfig
from gaguide.config.yaml_tree import apply_overrides, merge, read_yaml
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.shipped import RECIPES

EMBEDDED = Path(__file__).parent / "embedded.yaml"
"""The run that needs nothing but this package; it is what `launch/train.py` does without `--config`."""


def load_config(path: Path | None, overrides: dict[str, str]) -> RunConfig:
    """The run in `path` with overrides, whose values are read as YAML.

    path: a YAML file or the name of a shipped recipe; None for the embedded run.
    """
    tree = _read_with_base(EMBEDDED if path is None else RECIPES.find(path, "--config"))
    with FaultCollector() as faults:
        faults.add(*apply_overrides(tree, overrides, _takes_text))
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            raise UserError([_fault(detail, tree) for detail in error.errors()]) from None


def dump_config(run: RunConfig) -> str:
    """The run as YAML text that `load_config` reads back."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_base(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's tree over that of the file it names in `extends` (relative to itself)."""
    tree = read_yaml(path, "--config")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str) or depth > 8:
        raise UserError(Fault("extends", "names no file, or itself", f"mend {path}", base))
    return merge(_read_with_base(path.parent / base, depth + 1), tree)


def _fault(detail: Any, tree: dict[str, Any]) -> Fault:
    """One pydantic error as a fault with our words for the remedy."""
    path = [str(part) for part in detail["loc"] if not _is_union_branch(part)]
    field = ".".join(path) or "run"
    if detail["type"] == "extra_forbidden":
        return Fault(field, "no such field", _known(path), detail["input"])
    if detail["type"] == "missing":
        return Fault(field, "is missing", f"give it: {_described(path)}".removesuffix(": "))
    if not path or isinstance(_lookup(tree, path), dict):
        return Fault(field, detail["msg"].removeprefix("Value error, "), "mend this section")
    return Fault(field, _lower(detail["msg"]), _described(path) or "mend the value", _lookup(tree, path))


def _is_union_branch(part: Any) -> bool:
    """pydantic names the branch of a union it tried in the location: noise to a reader."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "tuple"))


def _lookup(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    """The section class that holds the last name of `path`."""
    section: Any = RunConfig
    for part in path[:-1]:
        if part.isdigit():  # an entry of a list of sections
            continue
        field = section.model_fields.get(part)
        inside = get_args(field.annotation) if field else ()
        section = inside[0] if inside else (field.annotation if field else None)
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return None
    return section


def _known(path: Sequence[str]) -> str:
    section = _section(path)
    return suggestion(path[-1], section.model_fields) if section else "see the README's list of fields"


def _takes_text(path: Sequence[str]) -> bool:
    section = _section(path)
    field = section.model_fields.get(path[-1]) if section else None
    return field is not None and field.annotation in (str, str | None)


def _described(path: Sequence[str]) -> str:
    section = _section(path)
    field = section.model_fields.get(path[-1]) if section else None
    return (field.description or "") if field else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
