"""Patterns by the names used in run files and on the command line.

A name is a lexicon (`contrast`), one of first-token, previous-token, self, offset-N and end-of-text (also
called delimiter), or an entry point in the group `gaguide.patterns` of an installed package: a function of a
tokenizer that returns a `Pattern`. `spans:MARK` are the tokens that the data mark (docs/data.md), and
`NAME@MARK` those targets of a pattern that are marked too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from gaguide.errors import UserError, suggestion
from gaguide.guidance.lexicon import Lexicon, Mode, shipped_lexicons

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gaguide.guidance.patterns import Pattern, TokenSet

ENTRY_POINTS = "gaguide.patterns"
SPANS = "spans:"
_FIXED = ("first-token", "previous-token", "self", "end-of-text", "delimiter", "offset-N")


def check_pattern_name(name: str, own: Mapping[str, Lexicon] | None = None, field: str = "pattern") -> None:
    """Raise a `UserError` under `field` for an unknown name and a pattern that a causal model cannot learn.

    Needs neither a tokenizer nor torch.
    """
    inner, at, mark = name.rpartition("@")
    if at or name.startswith(SPANS):
        _check_marked(name, inner if at else None, mark if at else name.removeprefix(SPANS), field)
        if at:
            check_pattern_name(inner, own, field)
        return
    offset = re.fullmatch(r"offset-(-?\d+)", name)
    if name == "next-token" or (offset and int(offset[1]) < 0):
        raise UserError.of(
            field,
            "is after the query, where a causal model cannot see: its attention there is always 0",
            "use previous-token, self or offset-N",
            name,
        )
    known = {*_FIXED, *shipped_lexicons(), *(own or {}), *entry_points(group=ENTRY_POINTS).names} - {
        "offset-N"
    }
    if not offset and name not in known:
        remedy = suggestion(name, known | {"offset-N"}, limit=40)
        raise UserError.of(field, "unknown pattern or lexicon", remedy, name)


def _check_marked(name: str, inner: str | None, mark: str, field: str) -> None:
    remedy = "write spans:MARK, or PATTERN@MARK for those targets of a pattern that are marked"
    if not mark or inner == "" or (inner or "").startswith(SPANS):
        raise UserError.of(field, "does not name a pattern and a mark of the data", remedy, name)
    if inner in ("self", "previous-token") or (inner or "").startswith("offset-"):
        problem = "has one target for each query, which a mark cannot restrict"
        raise UserError.of(field, problem, remedy, name)


def make_pattern(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    mode: Mode = "pieces",
    own: Mapping[str, Lexicon] | None = None,
    field: str = "pattern",
) -> Pattern:
    """The pattern called `name`, for a tokenizer; a user's `own` lexicons come before shipped ones.

    Raises a `UserError` under `field` for an unknown name and a pattern that a causal model cannot learn.
    """
    from gaguide.guidance.patterns import FirstToken, FixedOffset, MarkedTokens

    check_pattern_name(name, own, field)
    if name.startswith(SPANS):
        return MarkedTokens(name.removeprefix(SPANS))
    inner, at, mark = name.rpartition("@")
    if at:
        return MarkedTokens(mark, make_pattern(inner, tokenizer, mode, own, field))
    offset = re.fullmatch(r"offset-(\d+)", name)
    if offset:
        return FixedOffset(int(offset[1]))
    if name in ("self", "previous-token"):
        return FixedOffset(("self", "previous-token").index(name))
    if name == "first-token":
        return FirstToken()
    if name in ("end-of-text", "delimiter"):
        return _end_of_text(tokenizer, field)
    lexicons = shipped_lexicons() | dict(own or {})
    if name in lexicons:
        return lexicons[name].pattern(tokenizer, mode)
    return _from_entry_point(name, tokenizer, field)


def _end_of_text(tokenizer: PreTrainedTokenizerBase, field: str) -> TokenSet:
    """The token between documents; the delimiter pattern of the original work uses BERT's [SEP]."""
    if tokenizer.eos_token_id is None:
        raise UserError.of(
            field, "the tokenizer has no end-of-text token", "use another pattern", "end-of-text"
        )
    from gaguide.guidance.patterns import TokenSet

    return TokenSet("end-of-text", frozenset({int(tokenizer.eos_token_id)}))


def _from_entry_point(name: str, tokenizer: PreTrainedTokenizerBase, field: str) -> Pattern:
    from gaguide.guidance.patterns import Pattern

    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    pattern = offered[name].load()(tokenizer)
    if not isinstance(pattern, Pattern):
        raise UserError.of(
            field,
            f"entry point {offered[name].value} must return a pattern, but returned {type(pattern).__name__}",
            "return an object with `name` and `target(ids_BT)` (gaguide.guidance.Pattern)",
            name,
        )
    return pattern
