"""pydantic's errors as faults that name the field, its value and its description."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gaguide.errors import Fault, suggestion


def validation_faults(
    error: ValidationError, schema: type[BaseModel], tree: Any, root: str = "run"
) -> list[Fault]:
    """A fault for each of pydantic's errors, with the field's description as the remedy.

    tree: what was validated against `schema`. root: field of errors that belong to the whole tree.
    """
    return [_fault(detail, schema, tree, root) for detail in error.errors()]


def takes_text(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the field at a path of names is a string."""
    section = _section(schema, path)
    field = section.model_fields.get(path[-1]) if section else None
    return field is not None and field.annotation in (str, str | None)


def _fault(detail: Any, schema: type[BaseModel], tree: Any, root: str) -> Fault:
    path = [str(part) for part in detail["loc"] if not _is_branch(part)]
    field = ".".join(path) or root
    if detail["type"] == "extra_forbidden":
        section = _section(schema, path)
        remedy = (
            suggestion(path[-1], section.model_fields) if section else "see the list of fields in the docs"
        )
        return Fault(field, "unknown field", remedy, detail["input"])
    description = _description(schema, path)
    if detail["type"] == "missing":
        return Fault(field, "is required", f"give it: {description}".removesuffix(": "))
    value, problem = _lookup(tree, path), detail["msg"].removeprefix("Value error, ")
    problem = problem[:1].lower() + problem[1:]
    if not path or isinstance(value, dict):
        return Fault(field, problem, "correct this section")
    return Fault(field, problem, description or "correct the value", value)


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names a branch of a union or a validator, not a field."""
    return isinstance(part, str) and (
        "[" in part or part in ("int", "float", "str", "tuple", "function-plain")
    )


def _lookup(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        if isinstance(tree, (list, tuple)) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _section(schema: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The section class with the last name of `path` as a field; None where the path leaves the schema."""
    section: type[BaseModel] | None = schema
    for part in path[:-1]:
        if part.isdigit():  # an entry of a list of sections
            continue
        field = section.model_fields.get(part) if section else None
        section = _model_in(field.annotation) if field else None
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first section class in an annotation such as `tuple[Section, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _description(schema: type[BaseModel], path: Sequence[str]) -> str:
    section = _section(schema, path)
    field = section.model_fields.get(path[-1]) if section and path else None
    return (field.description or "") if field else ""
