"""Values of a task file's doc_to_* for one document: a column's value, rendered Jinja, or a constant."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from gaguide.errors import UserError, first_line
from gaguide.evaluate.tasks.harness.config import Template
from gaguide.evaluate.tasks.harness.source import FunctionReference

Document = Mapping[str, Any]
_MAX_SHOWN = 60
"""Characters of a value in a message."""


class DocumentError(Exception):
    """A document lacks a required value; `args` are field, problem and remedy."""


class Fields:
    """Reads documents whose columns are `columns`, as the harness does.

    has_choices: whether the task has doc_to_choice; digits then mean an index.
    """

    def __init__(self, columns: Collection[str], has_choices: bool) -> None:
        self.columns, self._has_choices = frozenset(columns), has_choices

    def text(self, document: Document, template: Template, field: str = "doc_to_text") -> str | int:
        """The question; an index where each choice has a prompt of its own."""
        found = self._value(document, template, field, is_index_like=True)
        if isinstance(found, bool) or not isinstance(found, (str, int)):
            raise _wrong(field, found, "neither text nor an index")
        return found

    def target(self, document: Document, template: Template) -> Any:
        """The answer: a text, an index, or a list of either."""
        found = self._value(document, template, "doc_to_target", is_index_like=True)
        is_list = isinstance(found, str) and len(found) >= 2 and found[0] == "[" and found[-1] == "]"
        if is_list and isinstance(template, str) and template not in self.columns:
            try:
                return ast.literal_eval(found)
            except (SyntaxError, ValueError):
                return found
        return found

    def choices(self, document: Document, template: Template) -> list[str]:
        """The choices, at least one, none of them empty."""
        found = self._value(document, template, "doc_to_choice", is_index_like=False)
        if isinstance(template, str) and template not in self.columns:
            try:
                found = ast.literal_eval(found)
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                raise _wrong("doc_to_choice", found, "not a list") from None
        elif isinstance(found, dict):
            found = list(found.values())
        if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
            raise _wrong("doc_to_choice", found, "not a list of strings")
        if not found or "" in found:
            raise _wrong("doc_to_choice", found, "empty, or has an empty choice")
        return list(found)

    def optional(self, document: Document, template: str | None, field: str) -> str:
        """A description or a prefix of the answer; "" where there is none."""
        if not template:
            return ""
        found = document[template] if template in document else self._render(template, document, field)
        return "" if found is None else str(found)

    def _value(self, document: Document, template: Template, field: str, is_index_like: bool) -> Any:
        if isinstance(template, FunctionReference):
            return call(template, field, document)
        if not isinstance(template, str):
            return template
        if template in self.columns:
            if template not in document:
                raise DocumentError(field, f"missing column {template!r}", "correct the row")
            return document[template]
        found = self._render(template, document, field)
        return int(found) if is_index_like and self._has_choices and _is_index(found) else found

    def _render(self, template: str, document: Document, field: str) -> str:
        import jinja2

        try:
            return _template(template).render(**document)
        except jinja2.UndefinedError as error:
            columns = ", ".join(map(str, document))
            remedy = f"the document has {columns}; correct the template"
            raise DocumentError(field, f"cannot be rendered: {first_line(error)}", remedy) from None
        except Exception as error:  # whatever the template's expressions raise
            problem = f"cannot be rendered: {type(error).__name__}: {first_line(error)}"
            raise DocumentError(field, problem, "correct the template or the row") from None


def call(reference: FunctionReference, field: str, *arguments: Any) -> Any:
    """The result of a trusted function; `DocumentError` where it raises an error."""
    function: Callable[..., Any] = reference.load()
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        problem = f"!function {reference.name} raised {type(error).__name__}: {first_line(error)}"
        raise DocumentError(field, problem, f"correct {reference.file}") from None


def short(value: Any) -> str:
    """`value` as a message shows it."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _wrong(field: str, value: Any, what: str) -> DocumentError:
    remedy = "correct the task file or the row"
    return DocumentError(field, f"gives {short(value)}, which is {what}", remedy)


def _is_index(text: str) -> bool:
    if not text.isdigit():
        return False
    try:  # as the harness reads it: "٣" and "007" are digits, but not numbers in Python
        return isinstance(ast.literal_eval(text), int)
    except (SyntaxError, ValueError):
        return False


@cache
def _template(text: str) -> Any:
    return _environment().from_string(text)


@cache
def _environment() -> Any:
    """The harness's Jinja, in a sandbox: a task file may come from anywhere."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    return environment


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    return re.sub(pattern, repl, string, count=count)
