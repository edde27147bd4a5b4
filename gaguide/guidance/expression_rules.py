"""Checks of a lexicon's regular expressions: valid, and matched in bounded time. Needs no torch.

Python's matcher can take time exponential in a word's length. Whether an expression can is decided by
its form, so that it is the same on every machine: a repeat may be of a single character or class only,
and all ways of matching a word of `LONGEST` characters must be fewer than `_STEPS`.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from gaguide.errors import UserError

LONGEST = 64
"""Characters of the longest word that is matched."""
_STEPS = 200_000_000
_SINGLE = (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN)
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
_REFUSED = {
    codes.GROUPREF: "refers back to a group",
    codes.GROUPREF_EXISTS: "refers back to a group",
    codes.ASSERT: "looks ahead or behind",
    codes.ASSERT_NOT: "looks ahead or behind",
    codes.AT: "has an anchor",
}


def check_expression(expression: str, field: str) -> None:
    """Raise a `UserError` under `field` for an expression that is not valid, or could take too long."""
    try:
        tree = parser.parse(expression)
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        problem = f"is not a valid regular expression ({error})"
        raise UserError.of(field, problem, "correct it (Python's re syntax)", expression) from None
    problems: dict[str, None] = {}
    steps = _ways(tree, problems, inside=False)
    if not problems and steps > _STEPS:
        problems[f"can match a word of {LONGEST} characters in too many ways"] = None
    if not problems and re.fullmatch(expression, ""):
        problems["matches the empty word"] = None
    if problems:
        remedy = (
            r"repeat single characters or classes only, such as \w+, at most three times, and leave out "
            "anchors (whole words are matched), look-around and back-references"
        )
        raise UserError.of(field, "; ".join(problems), remedy, expression)


def _ways(tree: Any, problems: dict[str, None], inside: bool) -> int:
    """Ways of matching a word of `LONGEST` characters, at most; `inside`: of a repeat."""
    ways = 1
    for code, value in tree:
        if code in _REFUSED:
            problems[_REFUSED[code]] = None
        elif code in _REPEATS:
            least, most, inner = value
            if most > 1 and (inside or len(inner) != 1 or inner[0][0] not in _SINGLE):
                problems["repeats more than one character, which can take exponential time"] = None
            ways *= min(int(most) - least + 1, LONGEST) * _ways(inner, problems, inside or most > 1)
        elif code is codes.BRANCH:
            ways *= sum(_ways(one, problems, inside) for one in value[1])
        elif code is codes.SUBPATTERN:
            ways *= _ways(value[-1], problems, inside)
        elif code is codes.ATOMIC_GROUP:
            ways *= _ways(value, problems, inside)
    return ways
