"""Whole words and phrases in token ids, for any fast tokenizer, without decoding text while training.

Matching follows the text, not the tokenizer's habits (see `gaguide.guidance.word_automaton`): "-not", ")."
and "\\tbut" are matched as well. A batch takes one table look-up per token of the longest match. A match
counts only between word boundaries: "Cont" does not match inside "Continue", nor "not" inside "knot". A space
in a phrase stands for any run of spaces, tabs and line breaks (up to `EXTRA_TOKENS` tokens more than one
space takes).

Shapes: B batch, T positions, N any number of positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from gaguide.data.format.token_text import token_bytes
from gaguide.errors import UserError
from gaguide.guidance.expressions import WordExpressions
from gaguide.guidance.patterns import Columns
from gaguide.guidance.word_automaton import (
    AFTER_LETTER,
    AFTER_OTHER,
    DEAD,
    FOUND,
    FOUND_BEFORE_OTHER,
    WordForm,
    WordTables,
    is_letter,
    make_tables,
)

MATCHING = 2
"""Part of a run's identity: increase it whenever the same words match different tokens."""


@dataclass(frozen=True)
class WordSet:
    """Keys whose token belongs to a listed word or phrase: every token of a match is a target."""

    name: str
    """Name of the pattern."""
    words: tuple[str, ...]
    """The words and phrases, affixes ("un-", "-n't"), "regex …", and "except …" for exceptions."""
    _tables: WordTables = field(repr=False, compare=False)
    _expressions: WordExpressions | None = field(default=None, repr=False, compare=False)
    _exceptions: WordSet | None = field(default=None, repr=False, compare=False)
    _placed: dict[torch.device, WordTables] = field(default_factory=dict, repr=False, compare=False)

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
        spell the affix are targets. exceptions: words and affixes ("under-") whose tokens are not targets.
        expressions: regular expressions for whole words (expressions.py).
        Raises a `UserError` for a slow tokenizer and for one whose pieces are not text (WordPiece).
        """
        kind = type(tokenizer).__name__
        if tokenizer.is_fast:
            kind = type(tokenizer.backend_tokenizer.model).__name__
        if not tokenizer.is_fast or kind == "WordPiece":
            problem = "words needs a fast tokenizer of byte-level BPE or SentencePiece kind"
            raise UserError.of("guidance.mode", problem, "use mode pieces", kind)
        vocabulary = token_bytes(tokenizer)
        forms = {form for word in words for form in _word_forms(word)}
        forms |= {form for affix in affixes for form in _affix_forms(affix)}
        shown = (*words, *affixes, *(f"regex {one}" for one in expressions))
        return cls(
            name,
            (*shown, *(f"except {one}" for one in exceptions)),
            make_tables(forms, vocabulary),
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
    return WordSet(f"{name} exceptions", tuple(exceptions), make_tables(forms, vocabulary))


def _word_forms(word: str) -> list[WordForm]:
    return [
        WordForm(form, False if is_letter(form[0]) else None, False if is_letter(form[-1]) else None)
        for form in _forms(word)
    ]


def _affix_forms(affix: str) -> list[WordForm]:
    if affix.endswith("-"):
        return [WordForm(form, False if is_letter(form[0]) else None, None) for form in _forms(affix[:-1])]
    return [WordForm(form, True, False if is_letter(form[-1]) else None) for form in _forms(affix[1:])]


def _forms(word: str) -> list[str]:
    word = " ".join(word.split())
    forms = [word, word[:1].upper() + word[1:], word.upper()]
    return list(dict.fromkeys(forms + [form.replace("'", "’") for form in forms]))


def _match(ids_BT: torch.Tensor, tables: WordTables) -> torch.Tensor:
    """bool [B, T], True on every token of a match."""
    T = ids_BT.shape[1]
    size = tables.starts_letter_V.numel()
    ids_BT = torch.where(ids_BT < 0, size - 1, ids_BT.clamp(max=size - 1))
    after_letter_BT, letter_next_BT = _neighbours(ids_BT, tables)
    state_BT = torch.where(after_letter_BT, AFTER_LETTER, AFTER_OTHER)
    marked_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for depth in range(min(tables.longest, T)):
        # state_BT[:, t] is the state after the tokens t … t+depth-1; extend it by token t+depth.
        state_BT = _advance(state_BT[:, : T - depth], ids_BT[:, depth:], tables, size)
        bits_BT = torch.where(state_BT >= 0, tables.found_S[state_BT.clamp(min=0)], 0)
        found_BT = (bits_BT & FOUND).bool()
        found_BT |= (bits_BT & FOUND_BEFORE_OTHER).bool() & ~letter_next_BT[:, depth:]
        for at in range(depth + 1):
            marked_BT[:, at : at + T - depth] |= found_BT
    return marked_BT & ~tables.is_white_V[ids_BT]


def _neighbours(ids_BT: torch.Tensor, tables: WordTables) -> tuple[torch.Tensor, torch.Tensor]:
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
        ahead_BT = torch.where(
            _unshift(completes_BT), _unshift(completed_BT), _unshift(straddling_BT & inner_BT)
        )
        straddling_BT = straddles_BT & ahead_BT
    first_BT = torch.where(tables.has_whole_V[ids_BT], tables.starts_letter_V[ids_BT], straddling_BT)
    return after_letter_BT, torch.where(straddles_BT, straddling_BT, _unshift(first_BT))


def _shift(x_BT: torch.Tensor) -> torch.Tensor:
    """The value of the token before; 0 at the start."""
    return torch.nn.functional.pad(x_BT[:, :-1], (1, 0))


def _unshift(x_BT: torch.Tensor) -> torch.Tensor:
    """The value of the token after; 0 at the end."""
    return torch.nn.functional.pad(x_BT[:, 1:], (0, 1))


def _advance(state_BN: torch.Tensor, ids_BN: torch.Tensor, tables: WordTables, size: int) -> torch.Tensor:
    if not tables.edges_E.numel():
        return torch.full_like(state_BN, DEAD)
    key_BN = state_BN * size + ids_BN
    at_BN = torch.searchsorted(tables.edges_E, key_BN).clamp(max=tables.edges_E.numel() - 1)
    hit_BN = (tables.edges_E[at_BN] == key_BN) & (state_BN >= 0)
    return torch.where(hit_BN, tables.next_E[at_BN], DEAD)
