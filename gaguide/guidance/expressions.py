"""Regular expressions for whole words, matched on the text that tokens spell.

A word is a run of letters, digits and underscores, with apostrophes inside ("isn't"); an expression must
match all of it, so that "un\\w+" does not match inside "sunny". The word is matched as it
stands and, where it is capitalised or in capitals, in lower case, with straight apostrophes. All tokens
of a word that matches are targets. Every distinct word is matched once. The text is read on the host:
on a GPU this waits for the ids. Words of more than `LONGEST` characters do not match.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, count
from weakref import WeakValueDictionary

import torch

from gaguide.guidance.expression_rules import LONGEST, check_expression

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_KEPT = 200_000
"""Distinct words whose answer is kept."""


class WordExpressions:
    """Whether tokens belong to a word that one of some expressions matches, for one vocabulary."""

    def __init__(self, expressions: Sequence[str], vocabulary: Sequence[bytes]) -> None:
        """vocabulary: bytes of every entry, empty for special tokens (`token_bytes`)."""
        for expression in expressions:
            check_expression(expression, "lexicon.regex")
        self._expressions = tuple(expressions)
        self._matches = [re.compile(expression).fullmatch for expression in expressions]
        # A token without text ends a word, like one that no word contains.
        self._pieces = [raw or b"\0" for raw in vocabulary]
        self._known: dict[str, bool] = {}
        self._number = next(_NUMBERS)
        _ALL[self._number] = self

    def __reduce__(self) -> tuple[type[WordExpressions], tuple[tuple[str, ...], list[bytes]]]:
        """A copy, also in another process, has a number of its own."""
        return WordExpressions, (self._expressions, self._pieces)

    def marked(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """bool [B, T] on the device of the ids, True on every token of a word that matches."""
        return _mark_op(ids_BT, self._number)

    def contains(self, word: str) -> bool:
        """Whether a word matches."""
        found = self._known.get(word)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[word] = len(word) <= LONGEST and self._match(word.replace("’", "'"))
        return found

    def _match(self, word: str) -> bool:
        forms = {word} | ({word.lower()} if word in (word.capitalize(), word.upper()) else set())
        return any(match(form) for match in self._matches for form in forms)

    def rows(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """`marked`, of ids on the host."""
        marks = [self._row(ids) for ids in ids_BT.tolist()]
        return torch.tensor(marks, dtype=torch.bool).reshape(ids_BT.shape)

    def _row(self, ids: Sequence[int]) -> list[bool]:
        size = len(self._pieces)
        raws = [self._pieces[token] if 0 <= token < size else b"\0" for token in ids]
        whole = b"".join(raws)
        text = whole.decode("utf-8", "surrogateescape")
        ends = list(accumulate(map(len, raws)))
        at = range(len(text) + 1) if len(text) == len(whole) else [0, *accumulate(map(_width, text))]
        marks, token = [False] * len(ids), 0
        for found in _WORD.finditer(text):
            if not self.contains(found[0]):
                continue
            start, stop = at[found.start()], at[found.end()]
            while ends[token] <= start:
                token += 1
            last = token
            while True:
                marks[last] = True
                if ends[last] >= stop:
                    break
                last += 1
        return marks


_NUMBERS = count()
_ALL: WeakValueDictionary[int, WordExpressions] = WeakValueDictionary()
"""By number: a compiled graph holds a number, not an object."""


@torch.library.custom_op("gaguide::mark_words", mutates_args=())
def _mark_op(ids_BT: torch.Tensor, number: int) -> torch.Tensor:
    return _ALL[number].rows(ids_BT.cpu()).to(ids_BT.device)


@_mark_op.register_fake
def _(ids_BT: torch.Tensor, number: int) -> torch.Tensor:
    return torch.empty_like(ids_BT, dtype=torch.bool)


def _width(character: str) -> int:
    return len(character.encode("utf-8", "surrogateescape"))
