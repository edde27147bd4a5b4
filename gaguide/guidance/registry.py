"""Patterns by the names used in run files and on the command line.

A name is a lexicon (`contrast`), one of first-token, previous-token, self, offset-N and end-of-text (also
called delimiter), or an entry point in the group `gaguide.patterns` of an installed package: a function of a
tokenizer that returns a `Pattern`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points

from transformers import PreTrainedTokenizerBase

from gaguide.errors import Fault, UserError, suggestion
from gaguide.guidance.lexicon import Lexicon, Mode, shipped_lexicons
from gaguide.guidance.patterns import FirstToken, FixedOffset, Pattern, TokenSet

ENTRY_POINTS = "gaguide.patterns"
_FIXED = ("first-token", "previous-token", "self", "end-of-text", "delimiter", "offset-N")


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
    offset = re.fullmatch(r"offset-(-?\d+)", name)
    if name == "next-token" or (offset and int(offset[1]) < 0):
        raise UserError(
            Fault(
                field,
                "is after the query, where a causal model cannot see: its attention there is always 0",
                "use previous-token, self or offset-N",
                name,
            )
        )
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
    return _from_entry_point(name, tokenizer, field, list(lexicons))


def _end_of_text(tokenizer: PreTrainedTokenizerBase, field: str) -> TokenSet:
    """The token between documents; the delimiter pattern of the original work uses BERT's [SEP]."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            Fault(field, "the tokenizer has no end-of-text token", "use another pattern", "end-of-text")
        )
    return TokenSet("end-of-text", frozenset({int(tokenizer.eos_token_id)}))


def _from_entry_point(
    name: str, tokenizer: PreTrainedTokenizerBase, field: str, lexicons: list[str]
) -> Pattern:
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = [*_FIXED, *lexicons, *offered]
        raise UserError(Fault(field, "unknown pattern or lexicon", suggestion(name, known, limit=40), name))
    pattern = offered[name].load()(tokenizer)
    if not isinstance(pattern, Pattern):
        raise UserError(
            Fault(
                field,
                f"entry point {offered[name].value} must return a pattern, but returned "
                f"{type(pattern).__name__}",
                "return an object with `name` and `target(ids_BT)` (gaguide.guidance.Pattern)",
                name,
            )
        )
    return pattern
