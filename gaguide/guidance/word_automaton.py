"""The automaton that finds words in token ids, built from the bytes of every vocabulary entry.

Its states are the remainders of words that may have begun, so that a word is found whatever tokens spell it
and whatever else they contain ("-not", ").", "\\tbut"). `gaguide.guidance.words` matches batches with it.

Shapes: V vocabulary, E edges, S states.
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

AFTER_OTHER, AFTER_LETTER = 0, 1
"""First states, by the character before the token."""
DEAD = -1
"""The state from which no word can be found."""
EXTRA_TOKENS = 6
"""Tokens that white space within a match may take in addition to a single space's."""
FOUND, FOUND_BEFORE_OTHER = 1, 2
"""Bits: a match ends with the state's token; it does so unless a letter follows."""
_WHITE = b" \t\n\r\x0b\x0c"
_RUN = re.compile(rb"[ \t\n\r\x0b\x0c]+")
_WORD_AND_ON = re.compile(r"\w\W")


@dataclass(frozen=True)
class _Rest:
    """The remainder of a word that has begun."""

    rest: bytes
    """Its remaining bytes; a space is any run of white space."""
    in_white: bool
    """Whether more white space may come first."""
    ends_with_letter: bool
    """Whether a letter after it would make it another word."""


@dataclass(frozen=True)
class WordForm:
    """One spelling of a word, phrase or affix."""

    text: str
    """The spelling."""
    letter_before: bool | None
    """Whether a letter must precede it (a suffix) or must not (a word); None where either may."""
    letter_after: bool | None
    """False where no letter may follow it (a word), None where one may (a prefix)."""


@dataclass(frozen=True)
class _Piece:
    """A vocabulary entry as UTF-8: the end of a split character, whole characters, the start of another."""

    raw: bytes
    """All of its bytes."""
    head: int
    """Bytes at its start that continue a character of an earlier token."""
    tail: int
    """Index of the first byte of a character that a later token completes; the length if there is none."""


@dataclass(frozen=True)
class WordTables:
    """The automaton and the characters at the ends of tokens, as tensors on one device."""

    edges_E: torch.Tensor
    """Edges as state × V + token id, ascending."""
    next_E: torch.Tensor
    """The state that each edge leads to."""
    found_S: torch.Tensor
    """Bits `FOUND` and `FOUND_BEFORE_OTHER`."""
    starts_letter_V: torch.Tensor
    """Whether the first character that begins in the token is a letter; False where it is incomplete."""
    ends_letter_V: torch.Tensor
    """Whether the last character that the token completes from its own bytes is a letter."""
    is_white_V: torch.Tensor
    """Whether the token is only white space, or empty."""
    has_start_V: torch.Tensor
    """Whether a character begins in the token."""
    has_whole_V: torch.Tensor
    """Whether a whole character begins and ends in the token."""
    head_count_V: torch.Tensor
    """Number of leading bytes that continue an earlier token's character, at most 3."""
    head_bits_V: torch.Tensor
    """Their bits."""
    tail_bits_V: torch.Tensor
    """Bits of the incomplete character at the token's end."""
    tail_missing_V: torch.Tensor
    """Number of bytes it lacks; 0 if there is none."""
    letters: torch.Tensor
    """Whether each code point is a letter."""
    longest: int
    """Tokens of the longest match."""

    def to(self, device: torch.device) -> WordTables:
        """A copy on `device`."""
        values: dict[str, Any] = {
            name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in vars(self).items()
        }
        return WordTables(**values)


def is_letter(character: str) -> bool:
    """Whether a word continues with it: letters, digits and the underscore."""
    return character.isalnum() or character == "_"


def _split(raw: bytes) -> _Piece:
    if raw.isascii():
        return _Piece(raw, 0, len(raw))
    head = 0
    while head < min(len(raw), 3) and raw[head] & 0xC0 == 0x80:
        head += 1
    for back in range(1, min(len(raw) - head, 3) + 1):
        byte = raw[-back]
        if byte & 0xC0 != 0x80:
            return _Piece(raw, head, len(raw) - back if _width(byte) > back else len(raw))
    return _Piece(raw, head, len(raw))


def _width(byte: int) -> int:
    """Bytes of the character that starts with `byte`."""
    return 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


def _start_pattern(start: bytes) -> bytes:
    """Matches the first two bytes of a word, white space for a space, or the first at a token's end."""
    first, *rest = (rb"[ \t\n\r\x0b\x0c]" if byte == 32 else re.escape(bytes([byte])) for byte in start)
    return first + (b"(?:%b|\\Z)" % rest[0] if rest else b"")


class _Builder:
    """Builds the automaton: states are sets of rests, edges are vocabulary entries."""

    def __init__(self, forms: Iterable[WordForm], pieces: list[_Piece]) -> None:
        self.pieces = pieces
        self.forms = [
            (_Rest(form.text.encode(), False, form.letter_after is False), form.letter_before)
            for form in sorted(forms, key=lambda one: (one.text, str(one.letter_before)))
        ]
        self.by_start: dict[bytes, list[tuple[_Rest, bool | None]]] = defaultdict(list)
        for form in self.forms:
            self.by_start[form[0].rest[:1]].append(form)
        self.texts = [piece.raw[piece.head : piece.tail].decode("utf-8", "replace") for piece in pieces]
        # By bytes with white space as one space: entries, those entries sorted, and those in which a letter
        # is followed by something else, which alone can complete a word and begin another.
        self.by_bytes: dict[bytes, list[int]] = defaultdict(list)
        mixed = []
        for token, (piece, text) in enumerate(zip(pieces, self.texts)):
            if piece.raw and not piece.head:
                key = _RUN.sub(b" ", piece.raw)
                self.by_bytes[key].append(token)
                cut = piece.tail < len(piece.raw)
                if _WORD_AND_ON.search(text) or (cut and text and is_letter(text[-1])):
                    mixed.append(key)
        self.ordered = sorted(self.by_bytes)
        self.mixed = sorted(set(mixed))

    def first_edges(self) -> Iterator[tuple[int, int, frozenset[_Rest], int]]:
        """(first state, token, state after it, bits found in it) for every token with a word."""
        if not self.by_start:
            return
        # Two bytes leave out most places: those of a word, or its first at the token's end.
        starts = {form.rest[:2] for form, _ in self.forms}
        possible = re.compile(b"(?=%b)" % b"|".join(map(_start_pattern, sorted(starts))))
        for token, piece in enumerate(self.pieces):
            places = [match.start() for match in possible.finditer(piece.raw)]
            if places:
                after: dict[int, tuple[set[_Rest], int]] = {AFTER_OTHER: (set(), 0), AFTER_LETTER: (set(), 0)}
                for at, before in self._characters(token, places):
                    for rest, letter_before in self.by_start.get(piece.raw[at : at + 1], ()):
                        more, bits = self.follow(rest, piece, at)
                        if not more and not bits:
                            continue
                        for first, (rests, found) in after.items():
                            is_after_letter = first == AFTER_LETTER if before is None else before
                            if letter_before is None or letter_before == is_after_letter:
                                after[first] = (rests | {more} if more else rests, found | bits)
                for first, (rests, found) in after.items():
                    if rests or found:
                        yield first, token, frozenset(rests), found

    def _characters(self, token: int, places: list[int]) -> Iterator[tuple[int, bool | None]]:
        """(byte, whether a letter precedes) of each character that begins in a token, at least of those
        at `places`; None for the first one, which an earlier token precedes."""
        piece, text = self.pieces[token], self.texts[token]
        if piece.raw.isascii():
            yield from ((at, is_letter(text[at - 1]) if at else None) for at in places)
            return
        before, at = None, piece.head
        for character in text:
            yield at, before
            before, at = is_letter(character), at + len(character.encode())
        if at < len(piece.raw):
            yield at, before

    def follow(self, rest: _Rest, piece: _Piece, at: int = 0) -> tuple[_Rest | None, int]:
        """The remainder of `rest` after the bytes of `piece` from `at` on, and the bits found."""
        raw, text, done, in_white = piece.raw, rest.rest, 0, rest.in_white
        while done < len(text):
            if at == len(raw):
                return _Rest(text[done:], in_white, rest.ends_with_letter), 0
            if raw[at] in _WHITE and (in_white or text[done] == 32):
                done += not in_white
                in_white = True
            elif raw[at] == text[done]:
                done, in_white = done + 1, False
            else:
                return None, 0
            at += 1
        if not rest.ends_with_letter:
            return None, FOUND
        if at >= piece.tail:  # the next character is in a later token
            return None, FOUND_BEFORE_OTHER
        following = raw[at : at + _width(raw[at])].decode("utf-8", "replace")
        return None, 0 if is_letter(following[0]) else FOUND

    def continue_(self, state: frozenset[_Rest]) -> dict[int, tuple[frozenset[_Rest], int]]:
        """Edges of a state."""
        edges: dict[int, tuple[frozenset[_Rest], int]] = {}
        for rest in state:
            for token in self._candidates(rest):
                if self.pieces[token].head and rest.rest[:1] < b"\x80":
                    continue
                more, bits = self.follow(rest, self.pieces[token])
                if more or bits:
                    rests, found = edges.get(token, (frozenset(), 0))
                    edges[token] = (rests | {more} if more else rests, found | bits)
        return edges

    def _candidates(self, rest: _Rest) -> set[int]:
        found: set[int] = set()
        for text in [rest.rest, b" " + rest.rest] if rest.in_white else [rest.rest]:
            keys = {text[:size] for size in range(1, len(text) + 1)}
            pool = self.mixed if rest.ends_with_letter else self.ordered
            first = bisect.bisect_left(pool, text)
            while first < len(pool) and pool[first].startswith(text):
                keys.add(pool[first])
                first += 1
            # After a rest that ends within a run of white space, the entry may end with more of it.
            for key in keys | {key + b" " for key in keys}:
                found.update(self.by_bytes.get(key, ()))
        if rest.rest[:1] >= b"\x80":  # the word's own character may be split
            found.update(token for token, piece in enumerate(self.pieces) if piece.head)
        return found


def make_tables(forms: Iterable[WordForm], vocabulary: Sequence[bytes]) -> WordTables:
    """The automaton of `forms` for tokens of these bytes, whose index is the token id."""
    # The entry after the last one has no text, and serves ids beyond the vocabulary.
    pieces = [_split(raw) for raw in [*vocabulary, b""]]
    builder, size = _Builder(forms, pieces), len(pieces)
    states: dict[tuple[frozenset[_Rest], int], int] = {}
    found, edges = [0, 0], {}
    pending: list[frozenset[_Rest]] = []

    def state(rests: frozenset[_Rest], bits: int) -> int:
        key = (rests, bits)
        if key not in states:
            states[key] = len(found)
            found.append(bits)
            pending.append(rests)
        return states[key]

    for first, token, rests, bits in builder.first_edges():
        edges[first, token] = state(rests, bits)
    outgoing: dict[frozenset[_Rest], dict[int, tuple[frozenset[_Rest], int]]] = {}
    while pending:
        rests = pending.pop()
        if rests not in outgoing:
            outgoing[rests] = builder.continue_(rests)
            for more, bits in outgoing[rests].values():
                state(more, bits)
    for (rests, _), source in list(states.items()):
        for token, (more, bits) in outgoing[rests].items():
            edges[source, token] = states[more, bits]
    ordered = sorted((source * size + token, target) for (source, token), target in edges.items())
    texts = builder.texts
    heads = [piece.raw[: piece.head] for piece in pieces]
    tails = [piece.raw[piece.tail :] for piece in pieces]
    has_start = [piece.head < len(piece.raw) for piece in pieces]
    return WordTables(
        torch.tensor([key for key, _ in ordered]),
        torch.tensor([target for _, target in ordered]),
        torch.tensor(found),
        torch.tensor([bool(text) and is_letter(text[0]) for text in texts]),
        torch.tensor([bool(text) and is_letter(text[-1]) for text in texts]),
        torch.tensor([not piece.raw.strip(_WHITE) for piece in pieces]),
        torch.tensor(has_start),
        torch.tensor([bool(text) for text in texts]),
        torch.tensor([len(head) for head in heads]),
        torch.tensor([_bits(head) for head in heads]),
        torch.tensor([_bits(tail) for tail in tails]),
        torch.tensor([_width(tail[0]) - len(tail) if tail else 0 for tail in tails]),
        _letters(),
        _longest(outgoing) + EXTRA_TOKENS,
    )


def _longest(outgoing: dict[frozenset[_Rest], dict[int, tuple[frozenset[_Rest], int]]]) -> int:
    """Tokens of the longest match, with one token of white space at most in each gap."""

    @cache
    def longest(rests: frozenset[_Rest]) -> int:
        following = {more for more, _ in outgoing[rests].values() if more != rests}
        return max((1 + longest(more) for more in following), default=0)

    return 1 + max(map(longest, outgoing), default=0)


def _bits(raw: bytes) -> int:
    """The code point's bits in some bytes of a character."""
    value = 0
    for byte in raw:
        value = value << 6 | (byte & 0x3F if byte & 0xC0 == 0x80 else byte & (0xFF >> (_width(byte) + 1)))
    return value


@cache
def _letters() -> torch.Tensor:
    """Whether each code point is a letter: `\\w` matches it (`is_letter`, but much faster)."""
    letters = torch.zeros(0x110000, dtype=torch.bool)
    for run in re.finditer(r"\w+", "".join(map(chr, range(0x110000)))):
        letters[run.start() : run.end()] = True
    return letters
