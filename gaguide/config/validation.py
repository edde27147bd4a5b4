"""pydantic's errors as faults, whose remedies say what a field accepts, derived from the JSON schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from gaguide.errors import Fault, suggestion
from gaguide.grouping import grouped

_WORDS = {"dicti": "a mapping", "tuple": "a list"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_NOUNS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "string": ("text", "texts"),
    "boolean": ("true or false", "true or false"),
    "object": ("a mapping", "mappings"),
    "null": ("null", "null"),
}


def validation_faults(
    error: ValidationError, schema: type[BaseModel], tree: Any, root: str = "run"
) -> list[Fault]:
    """One fault for each field that `error` reports, in the order of its errors.

    `tree` was validated against `schema`; `root` is the field of errors that concern the whole tree.
    """
    by_field = grouped(
        (tuple(str(part) for part in detail["loc"] if not _is_branch(part)), detail)
        for detail in error.errors()
    )
    return [_fault(schema, path, details, tree, root) for path, details in by_field.items()]


def takes_text(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the field at `path` is a string, or a string or null."""
    found = _field_schema(schema, path) or {}
    branches = found.get("anyOf", [found])
    return {branch.get("type") for branch in branches} in ({"string"}, {"string", "null"}) and not any(
        "enum" in branch or "const" in branch for branch in branches
    )


def _fault(
    model: type[BaseModel], path: tuple[str, ...], details: Sequence[Any], tree: Any, root: str
) -> Fault:
    """The fault of one field; a union gives an error for each of its branches."""
    field = ".".join(path) or root
    first = details[0]
    if first["type"] == "extra_forbidden":
        return Fault(field, "unknown field", _known_names(model, path), first["input"])
    if first["type"] == "missing":
        return Fault(field, "is required", f"give {accepted(model, path)}")
    value = _lookup(tree, path)
    if first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
        if not path or isinstance(value, dict):  # of a whole section
            return Fault(field, problem, "correct this section")
    else:
        problem = " or ".join(dict.fromkeys(map(_problem, details))).replace(" or must be ", " or ")
    return Fault(field, problem, f"give {accepted(model, path)}", value)


def _problem(detail: Any) -> str:
    """pydantic's message in the words of settings files: "must", lists and mappings."""
    text = re.sub(r"^(Input|Value|String|Tuple) should ", "must ", detail["msg"].partition(", unable to")[0])
    text = re.sub(r"a valid (dictionary.*|tuple)", lambda found: _WORDS[found[1][:5]], text)
    return text[:1].lower() + text[1:]


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names the branch of a union or a validator instead of a field."""
    return isinstance(part, str) and (
        "[" in part or part in ("int", "float", "str", "tuple", "constrained-int", "function-plain")
    )


def _lookup(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        if isinstance(tree, (list, tuple)) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _field_schema(model: type[BaseModel], path: Sequence[str]) -> dict[str, Any] | None:
    """JSON schema of the field at `path`, whose digits index lists; None if there is no such field."""
    schema: dict[str, Any] = _schema(model)
    for part in path:
        schema = _section(model, schema)
        if part.isdigit() and schema.get("type") == "array":
            schema = schema.get("items") or schema["prefixItems"][0]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        elif isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        else:
            return None
    return _resolve(model, schema)


def _resolve(model: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return _schema(model)["$defs"][name] if name else schema


def _section(model: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    """The branch of `schema` that has fields or items, for `section | None`."""
    schema = _resolve(model, schema)
    branches = [_resolve(model, branch) for branch in schema.get("anyOf", [])]
    return next((each for each in branches if each.get("type") in ("object", "array")), schema)


def _known_names(model: type[BaseModel], path: Sequence[str]) -> str:
    schema = _field_schema(model, path[:-1])
    names = _section(model, schema).get("properties", {}) if schema else {}
    return suggestion(path[-1], names) if names else "see the documentation"


def accepted(model: type[BaseModel], path: Sequence[str]) -> str:
    """Values that the field at `path` accepts, in words such as `an integer greater than 0 or null`."""
    schema = _field_schema(model, path)
    return _describe(model, schema) if schema else "another value"


def _describe(model: type[BaseModel], schema: dict[str, Any], plural: bool = False) -> str:
    """Values that a JSON schema accepts, such as `an integer greater than 0, 'auto' or null`."""
    schema = _resolve(model, schema)
    if "anyOf" in schema:
        texts = [_describe(model, branch, plural) for branch in schema["anyOf"]]
        # A list is longest to read: it goes before null only.
        return _either(
            [text for text in texts if text != "null"] + [text for text in texts if text == "null"]
        )
    if "enum" in schema or "const" in schema:
        return _either([repr(value) for value in schema.get("enum", [schema.get("const")])])
    if schema.get("type") == "array":
        same = schema.get("items") or schema.get("prefixItems", [{}])[0]
        count = f"{len(schema['prefixItems'])} " if "prefixItems" in schema else ""
        return f"a list of {count}{_describe(model, same, plural=True)}"
    if schema.get("properties"):
        required = schema.get("required", [])
        return "a section" + (f" with {', '.join(required)}" if required else "")
    noun = _NOUNS.get(schema.get("type", ""), ("a value", "values"))[plural]
    noun = f"non-empty {noun}" if schema.get("minLength") else noun
    bounds = " and ".join(f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if key in schema)
    return f"{noun} {bounds}" if bounds else noun


def _either(texts: Sequence[str]) -> str:
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
