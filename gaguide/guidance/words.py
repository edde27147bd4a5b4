"""Whole words and phrases in token ids, for any fast tokenizer, without decoding text while training.

Matching follows the text, not the tokenizer's habits: from the bytes of every vocabulary entry an automaton
is built whose states are what remains of the words that may have begun, so that a word is found whatever
tokens spell it and whatever they contain besides ("-not", ").", "\\tbut"). A batch is matched with one table
look-up per token of the longest match. A match counts only between word boundaries: "Cont" does not match
inside "Continue", nor "not" inside "knot". A space in a phrase stands for any run of spaces, tabs and line
breaks (up to `_EXTRA_TOKENS` tokens more than one space takes).

Shapes: B batch, T positions, V vocabulary, E edges, S states.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gaguide.data.format.token_text import token_bytes
from gaguide.errors import Fault, UserError
from gaguide.guidance.expressions import WordExpressions
from gaguide.guidance.patterns import Columns

_AFTER_OTHER, _AFTER_LETTER = 0, 1  # first states, by the character before the token
_DEAD = -1
_EXTRA_TOKENS = 6
MATCHING = 2
"""Part of a run's identity: to be raised whenever the same words match other tokens."""
_WHITE = b" \t\n\r\x0b\x0c"
_RUN = re.compile(rb"[ \t\n\r\x0b\x0c]+")
# What a state tells of the matches that end with its token, as bits.
_FOUND, _FOUND_BEFORE_OTHER = 1, 2


@dataclass(frozen=True)
class _Rest:
    """What must follow for a word that has begun to be complete."""

    rest: bytes
    """Its remaining bytes; a space is any run of white space."""
    in_white: bool
    """Whether more white space may come first."""
    ends_with_letter: bool
    """Whether a letter after it would make it another word."""


@dataclass(frozen=True)
class _Form:
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
class _Tables:
    """The automaton and the characters at the ends of tokens, as tensors on one device."""

    edges_E: torch.Tensor
    """Edges as state × V + token id, ascending."""
    next_E: torch.Tensor
    """The state that each edge leads to."""
    found_S: torch.Tensor
    """Bits `_FOUND` and `_FOUND_BEFORE_OTHER`."""
    starts_letter_V: torch.Tensor
    """Whether the first character that begins in the token is a letter; False where it is incomplete."""
    ends_letter_V: torch.Tensor
    """Whether the last character that the token completes from its own bytes is a letter."""
    is_white_V: torch.Tensor
    """Whether the token is nothing but white space, or empty."""
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

    def to(self, device: torch.device) -> _Tables:
        """A copy on `device`."""
        values: dict[str, Any] = {
            name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in vars(self).items()
        }
        return _Tables(**values)


@dataclass(frozen=True)
class WordSet:
    """Keys whose token belongs to a listed word or phrase: every token of a match is a target."""

    name: str
    """Name of the pattern."""
    words: tuple[str, ...]
    """The words and phrases, affixes ("un-", "-n't"), "regex …", and "except …" for what is no match."""
    _tables: _Tables = field(repr=False, compare=False)
    _expressions: WordExpressions | None = field(default=None, repr=False, compare=False)
    _exceptions: WordSet | None = field(default=None, repr=False, compare=False)
    _placed: dict[torch.device, _Tables] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        name: str,
        words: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        affixes: Sequence[str] = (),
        exceptions: Sequence[str] = (),
        expressions: Sequence[str] = (),
    ) -> WordSet:
        """The pattern for `words` as listed, capitalised, in capitals, and with curly apostrophes.

        affixes: "un-" matches at the start of words, "-n't" at their end, after a letter; the tokens that
        spell the affix are targets. exceptions: words and affixes ("under-") whose tokens are no targets.
        expressions: regular expressions for whole words (expressions.py).
        Raises a `UserError` for a slow tokenizer and for one whose pieces are not text (WordPiece).
        """
        kind = type(tokenizer).__name__
        if tokenizer.is_fast:
            kind = type(tokenizer.backend_tokenizer.model).__name__
        if not tokenizer.is_fast or kind == "WordPiece":
            problem = "words needs a fast tokenizer of byte-level BPE or SentencePiece kind"
            raise UserError(Fault("guidance.mode", problem, "use mode pieces", kind))
        vocabulary = token_bytes(tokenizer)
        forms = {form for word in words for form in _word_forms(word)}
        forms |= {form for affix in affixes for form in _affix_forms(affix)}
        shown = (*words, *affixes, *(f"regex {one}" for one in expressions))
        return cls(
            name,
            (*shown, *(f"except {one}" for one in exceptions)),
            _tables(forms, vocabulary),
            WordExpressions(expressions, vocabulary) if expressions else None,
            _excepted(name, exceptions, vocabulary),
        )

    def prepare(self, device: torch.device) -> None:
        """Place the tables on a device, which a compiler could not do while it traces `target`."""
        if device not in self._placed:
            self._placed[device] = self._tables.to(device)
        if self._exceptions is not None:
            self._exceptions.prepare(device)

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Every token of every match, white space apart; the edges of a block count as word boundaries."""
        if ids_BT.device not in self._placed:
            self.prepare(ids_BT.device)
        marked_BT = _match(ids_BT, self._placed[ids_BT.device])
        if self._expressions is not None:
            marked_BT |= self._expressions.marked(ids_BT)
        if self._exceptions is not None:
            marked_BT &= ~self._exceptions.target(ids_BT).marked_BT
        return Columns(marked_BT)


def is_affix(text: str) -> bool:
    """Whether an entry is "un-" or "-n't": a hyphen at one end, a letter at the other side of it."""
    return len(text) > 1 and (text[0] == "-") != (text[-1] == "-")


def _excepted(name: str, exceptions: Sequence[str], vocabulary: Sequence[bytes]) -> WordSet | None:
    if not exceptions:
        return None
    forms = {
        form for one in exceptions for form in (_affix_forms(one) if is_affix(one) else _word_forms(one))
    }
    return WordSet(f"{name} exceptions", tuple(exceptions), _tables(forms, vocabulary))


def _word_forms(word: str) -> list[_Form]:
    return [
        _Form(form, False if _is_letter(form[0]) else None, False if _is_letter(form[-1]) else None)
        for form in _forms(word)
    ]


def _affix_forms(affix: str) -> list[_Form]:
    if affix.endswith("-"):
        return [_Form(form, False if _is_letter(form[0]) else None, None) for form in _forms(affix[:-1])]
    return [_Form(form, True, False if _is_letter(form[-1]) else None) for form in _forms(affix[1:])]


def _forms(word: str) -> list[str]:
    word = " ".join(word.split())
    forms = [word, word[:1].upper() + word[1:], word.upper()]
    return list(dict.fromkeys(forms + [form.replace("'", "’") for form in forms]))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _split(raw: bytes) -> _Piece:
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


class _Builder:
    """Builds the automaton: states are sets of rests, edges are vocabulary entries."""

    def __init__(self, forms: Iterable[_Form], pieces: list[_Piece]) -> None:
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
        # is followed by something else, which alone can complete a word and go on.
        self.by_bytes: dict[bytes, list[int]] = defaultdict(list)
        mixed = []
        for token, (piece, text) in enumerate(zip(pieces, self.texts)):
            if piece.raw and not piece.head:
                key = _RUN.sub(b" ", piece.raw)
                self.by_bytes[key].append(token)
                letters = [_is_letter(character) for character in text]
                if (True, False) in itertools.pairwise(letters) or (letters[-1:] == [True]) * (
                    piece.tail < len(piece.raw)
                ):
                    mixed.append(key)
        self.ordered = sorted(self.by_bytes)
        self.mixed = sorted(set(mixed))

    def start(self, token: int, after_letter: bool) -> tuple[frozenset[_Rest], int]:
        """The state after a first token, and what has been found in it."""
        piece = self.pieces[token]
        rests, found = set(), 0
        before_is_letter = after_letter
        at = piece.head
        for character in [*self.texts[token], None]:
            if at >= len(piece.raw):
                break
            for rest, letter_before in self.by_start.get(piece.raw[at : at + 1], ()):
                if letter_before is None or letter_before == before_is_letter:
                    more, bits = self.follow(rest, piece, at)
                    found |= bits
                    rests |= {more} if more else set()
            if character is None:
                break
            before_is_letter = _is_letter(character)
            at += len(character.encode())
        return frozenset(rests), found

    def follow(self, rest: _Rest, piece: _Piece, at: int = 0) -> tuple[_Rest | None, int]:
        """What remains of `rest` after the bytes of `piece` from `at` on, and what has been found."""
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
            return None, _FOUND
        if at >= piece.tail:  # the next character is in a later token
            return None, _FOUND_BEFORE_OTHER
        following = raw[at : at + _width(raw[at])].decode("utf-8", "replace")
        return None, 0 if _is_letter(following[0]) else _FOUND

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


def _tables(forms: Iterable[_Form], vocabulary: Sequence[bytes]) -> _Tables:
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

    for token in range(size):
        for first, after_letter in ((_AFTER_OTHER, False), (_AFTER_LETTER, True)):
            rests, bits = builder.start(token, after_letter)
            if rests or bits:
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
    return _Tables(
        torch.tensor([key for key, _ in ordered]),
        torch.tensor([target for _, target in ordered]),
        torch.tensor(found),
        torch.tensor([bool(text) and _is_letter(text[0]) for text in texts]),
        torch.tensor([bool(text) and _is_letter(text[-1]) for text in texts]),
        torch.tensor([not piece.raw.strip(_WHITE) for piece in pieces]),
        torch.tensor(has_start),
        torch.tensor([bool(text) for text in texts]),
        torch.tensor([len(head) for head in heads]),
        torch.tensor([_bits(head) for head in heads]),
        torch.tensor([_bits(tail) for tail in tails]),
        torch.tensor([_width(tail[0]) - len(tail) if tail else 0 for tail in tails]),
        _letters(),
        _longest(outgoing) + _EXTRA_TOKENS,
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
    return torch.tensor([_is_letter(chr(point)) for point in range(0x110000)])


def _match(ids_BT: torch.Tensor, tables: _Tables) -> torch.Tensor:
    """bool [B, T], True on every token of a match."""
    T = ids_BT.shape[1]
    size = tables.starts_letter_V.numel()
    ids_BT = torch.where(ids_BT < 0, size - 1, ids_BT.clamp(max=size - 1))
    after_letter_BT, letter_next_BT = _neighbours(ids_BT, tables)
    state_BT = torch.where(after_letter_BT, _AFTER_LETTER, _AFTER_OTHER)
    marked_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for depth in range(min(tables.longest, T)):
        # state_BT[:, t] is the state after the tokens t … t+depth-1; extend it by token t+depth.
        state_BT = _advance(state_BT[:, : T - depth], ids_BT[:, depth:], tables, size)
        bits_BT = torch.where(state_BT >= 0, tables.found_S[state_BT.clamp(min=0)], 0)
        found_BT = (bits_BT & _FOUND).bool()
        found_BT |= (bits_BT & _FOUND_BEFORE_OTHER).bool() & ~letter_next_BT[:, depth:]
        for at in range(depth + 1):
            marked_BT[:, at : at + T - depth] |= found_BT
    return marked_BT & ~tables.is_white_V[ids_BT]


def _neighbours(ids_BT: torch.Tensor, tables: _Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [B, T]: whether the character before the first one that begins in the token is a letter, and
    whether the one after the last whole one is. Characters may be split over up to four tokens."""
    head_count_BT, head_bits_BT = tables.head_count_V[ids_BT], tables.head_bits_V[ids_BT]
    bits_BT, missing_BT = tables.tail_bits_V[ids_BT], tables.tail_missing_V[ids_BT]
    inner_BT = ~tables.has_start_V[ids_BT] & (head_count_BT > 0)  # nothing but a part of a character
    for _ in range(2):  # a part may be followed by two more before the last
        before_bits_BT, before_missing_BT = _shift(bits_BT), _shift(missing_BT)
        open_BT = inner_BT & (before_missing_BT > head_count_BT)
        bits_BT = torch.where(open_BT, before_bits_BT << (6 * head_count_BT) | head_bits_BT, bits_BT)
        missing_BT = torch.where(open_BT, before_missing_BT - head_count_BT, missing_BT)
    needed_BT = _shift(missing_BT)
    completes_BT = (needed_BT > 0) & (head_count_BT >= needed_BT)
    point_BT = _shift(bits_BT) << (6 * needed_BT) | head_bits_BT >> (
        6 * (head_count_BT - needed_BT).clamp(min=0)
    )
    completed_BT = completes_BT & tables.letters[point_BT.clamp(0, tables.letters.numel() - 1)]
    # The last complete character up to the end of each token.
    last_BT = torch.where(tables.has_whole_V[ids_BT], tables.ends_letter_V[ids_BT], completed_BT)
    after_letter_BT = torch.where(head_count_BT > 0, completed_BT, _shift(last_BT))
    # The incomplete character at the end of each token, read where it is completed.
    straddles_BT = missing_BT > 0
    straddling_BT = torch.zeros_like(straddles_BT)
    for _ in range(3):
        ahead_BT = torch.where(_unshift(completes_BT), _unshift(completed_BT), _unshift(straddling_BT))
        straddling_BT = straddles_BT & ahead_BT
    first_BT = torch.where(tables.has_whole_V[ids_BT], tables.starts_letter_V[ids_BT], straddling_BT)
    return after_letter_BT, torch.where(straddles_BT, straddling_BT, _unshift(first_BT))


def _shift(x_BT: torch.Tensor) -> torch.Tensor:
    """The value of the token before; 0 at the start."""
    return torch.nn.functional.pad(x_BT[:, :-1], (1, 0))


def _unshift(x_BT: torch.Tensor) -> torch.Tensor:
    """The value of the token after; 0 at the end."""
    return torch.nn.functional.pad(x_BT[:, 1:], (0, 1))


def _advance(state_BN: torch.Tensor, ids_BN: torch.Tensor, tables: _Tables, size: int) -> torch.Tensor:
    if not tables.edges_E.numel():
        return torch.full_like(state_BN, _DEAD)
    key_BN = state_BN * size + ids_BN
    at_BN = torch.searchsorted(tables.edges_E, key_BN).clamp(max=tables.edges_E.numel() - 1)
    hit_BN = (tables.edges_E[at_BN] == key_BN) & (state_BN >= 0)
    return torch.where(hit_BN, tables.next_E[at_BN], _DEAD)
