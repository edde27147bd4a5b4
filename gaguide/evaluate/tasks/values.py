"""Values in columns: texts, classes, right answers, numbers. Each raises `RowError` for another value."""

from __future__ import annotations

import ast
import json
import math
import re
import string
from collections.abc import Sequence
from typing import Any

_MAX_SHOWN = 60
"""Characters of a value in a message."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")


class RowError(Exception):
    """A fault of one row; `args` are problem and remedy."""


class MissingColumnError(RowError):
    """The row lacks a column; reported once for all rows that lack it in the same way."""


def read_text(value: Any, name: str) -> str:
    """A string of whole characters."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {type(value).__name__}, not text", "give a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problem = f"{name} contains half a surrogate pair, which is not a character"
        raise RowError(problem, "correct the escapes \\ud800 … \\udfff") from None
    return value


def read_classes(value: Any) -> list[str]:
    """At least two texts, none empty: a list, or one written as a Python or JSON literal."""
    if isinstance(value, str):
        value = read_literal(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise RowError("classes is not a list of strings", 'write ["a", "b"], or the same in a string')
    if len(value) < 2:
        raise RowError(f"has {len(value)} class(es)", "give at least two, or use kind sequence_prob")
    if "" in value:
        raise RowError("has an empty class", "give each class a text")
    return [read_text(item, "a class") for item in value]


def read_literal(text: str) -> Any:
    """A Python or JSON literal; None where the text is neither."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_answer(value: Any, classes: Sequence[str]) -> int:
    """Index of the right class, given as one, as the class's text, or as a letter (A is the first).

    A text that is an index and the text of another class is refused: either may be meant.
    """
    number = None
    if isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        number = int(value)
        if value in classes and classes.index(value) != number:
            text = classes.index(value)
            problem = f"answer_index is {shown(value)}, an index and the text of class {text}"
            raise RowError(problem, "give the index from 0 as a JSON number, or a letter (A is the first)")
    elif isinstance(value, str) and value in classes:
        number = classes.index(value)
    elif isinstance(value, str) and len(letter := value.strip().upper()) == 1:
        number = string.ascii_uppercase.find(letter) if letter in string.ascii_uppercase else None
    if number is None:
        problem = f"answer_index is {shown(value)}, not an integer, a letter or one of the classes"
        raise RowError(problem, "count the classes from 0, give A for the first, or the right class's text")
    if not 0 <= number < len(classes):
        problem = f"answer_index is {shown(value)}, but there are {len(classes)} classes"
        raise RowError(problem, "count the classes from 0, or from A")
    return number


def read_number(value: Any) -> float:
    """A finite number; commas between digits are left out."""
    try:
        number = float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RowError(f"the answer is {shown(value)}, not a number", "give one, such as 12 or 3.5")
    return number


def number_text(value: Any) -> str:
    """The number as the data spell it."""
    return value.strip() if isinstance(value, str) else getattr(value, "text", str(value))


def shown(value: Any) -> str:
    """`value` as a message shows it; Python refuses to print integers of very many digits."""
    huge = isinstance(value, int) and value.bit_length() > 64
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
