"""The one reader of YAML settings files and of dotted overrides: runs, studies and tasks use it.

A tree is parsed YAML: nested dicts, lists and scalars. Callers validate it against a schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gaguide.errors import Fault, FaultCollector, UserError

_MAX_NODES = 100_000


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys (YAML silently keeps the last) and aliases that multiply or recurse."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            check_aliases(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _error(f"duplicate key {key.value!r}", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_aliases(node: yaml.Node) -> None:
    """Raise `yaml.YAMLError` where aliases below `node` multiply into a huge tree or contain themselves."""
    _expanded_size(node, {})


def _expanded_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Number of values in the tree below `node` with every alias written out, at most `_MAX_NODES`.

    `sizes` holds the size of every node visited, by id; None while the node is being counted.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = None
        below = (
            node.value if isinstance(node, yaml.SequenceNode) else (n for pair in node.value for n in pair)
        )
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in below)
    size = sizes[id(node)]
    if size is None:
        raise _error("an alias of a value that contains it", node)
    if size > _MAX_NODES:
        raise _error(f"more than {_MAX_NODES:,} values once aliases are written out", node)
    return size


def _error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: Path, field: str) -> dict[str, Any]:
    """Read the mapping in a YAML file; faults have the field `field` and name the path and the line."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError.of(field, problem, "give the path of a YAML file", str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError.of(field, f"is not UTF-8 text ({error})", "save it as UTF-8", str(path)) from None
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError.of(field, f"is not valid YAML: {error}", "correct the file", str(path)) from None
    if not isinstance(tree, dict):
        raise UserError.of(field, "must be a mapping of fields to values", "see the docs", str(path))
    return tree


def parse_yaml(text: str) -> Any:
    """The tree of a YAML text. Raises `ValueError` where it is not valid, or its aliases multiply."""
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--section.field VALUE` and `--section.field=VALUE` as {dotted field: text}; the last wins."""
    overrides: dict[str, str] = {}
    with FaultCollector() as faults:
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            field, equals, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or not field:
                faults.add(Fault("arguments", "unexpected argument", "write --section.field VALUE", word))
                continue
            if not equals:
                if not rest or rest[0].startswith("--"):
                    faults.add(Fault(word, "expected a value", f"write {word} VALUE"))
                    continue
                value = rest.pop(0)
            overrides[field] = value
    return overrides


def apply_overrides(
    tree: dict[str, Any],
    overrides: Mapping[str, str],
    takes_text: Callable[[Sequence[str]], bool] = lambda path: False,
) -> list[Fault]:
    """Put overrides into `tree`, in place; values are read as YAML, or kept as text where `takes_text`.

    takes_text: whether the field at a path of names is a string, so that `007` stays unchanged.
    Unknown names are left for the schema to report. Returns the faults of fields that lie inside a value.
    """
    return [fault for field, text in overrides.items() for fault in _set(tree, field, text, takes_text)]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings are merged, anything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _set(
    tree: dict[str, Any], field: str, text: str, takes_text: Callable[[Sequence[str]], bool]
) -> list[Fault]:
    *sections, leaf = field.split(".")
    for section in sections:
        if tree.get(section) is None:  # absent, or left empty in the file
            tree[section] = {}
        below = tree[section]
        if not isinstance(below, dict):
            return [
                Fault(f"--{field}", f"{section} is a value, not a section", f"set --{section} itself", text)
            ]
        tree = below
    if takes_text([*sections, leaf]):
        tree[leaf] = None if text == "null" else text  # a date or 007 in a name stays text
        return []
    try:
        tree[leaf] = parse_yaml(text)
    except ValueError:
        tree[leaf] = text
    return []
