"""Whole words and phrases in token ids, for any fast tokenizer, without decoding text while training.

Each word is tokenized once in every context that can change its tokens (at the start of a text, after a
space, a line break, an opening quote or bracket). The token sequences form a trie, and a batch is matched
against it with one table look-up per level. A match counts only between word boundaries: "Cont" does not
match inside "Continue", nor "not" inside "knot", however they are tokenized.

Shapes: B batch, T positions, V vocabulary, E trie edges, S trie states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from gaguide.data.format.token_text import byte_values
from gaguide.errors import Fault, UserError
from gaguide.guidance.patterns import Columns

# Contexts before a word that can change the tokens that spell it.
_BEFORE = ("", " ", "\n", '"', "(", " (", ' "', "“")
_ROOT, _DEAD = 0, -1


@dataclass(frozen=True)
class _Spelling:
    """One token sequence that spells an entry."""

    token_ids: tuple[int, ...]
    """The tokens."""
    open_left: bool
    """Whether a letter directly before them would make it another word."""
    open_right: bool
    """Whether a letter directly after them would."""


@dataclass(frozen=True)
class _Tables:
    """The trie and the word boundaries, as tensors on one device."""

    edges_E: torch.Tensor
    """Edges as state × V + token id, ascending."""
    next_E: torch.Tensor
    """The state that each edge leads to."""
    ends_S: torch.Tensor
    """0, or 1 where a spelling ends, plus 2 if it needs a word boundary on its left, plus 4 on its right."""
    starts_letter_V: torch.Tensor
    """Whether the token's text starts with a letter."""
    ends_letter_V: torch.Tensor
    """Whether the token's text ends with a letter."""
    longest: int
    """Tokens of the longest spelling."""

    def to(self, device: torch.device) -> _Tables:
        """A copy on `device`."""
        return _Tables(
            self.edges_E.to(device),
            self.next_E.to(device),
            self.ends_S.to(device),
            self.starts_letter_V.to(device),
            self.ends_letter_V.to(device),
            self.longest,
        )


@dataclass(frozen=True)
class WordSet:
    """Keys whose token belongs to a listed word or phrase: every token of a match is a target."""

    name: str
    """Name of the pattern."""
    words: tuple[str, ...]
    """The words and phrases."""
    _tables: _Tables = field(repr=False, compare=False)
    _placed: dict[torch.device, _Tables] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, name: str, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> WordSet:
        """The pattern for `words` as listed, capitalised, in capitals, and with curly apostrophes.

        Raises a `UserError` for a tokenizer without offsets (a slow one).
        """
        if not tokenizer.is_fast:
            raise UserError(
                Fault(
                    "guidance.mode",
                    "words needs a fast tokenizer",
                    "use mode pieces",
                    type(tokenizer).__name__,
                )
            )
        spellings = {s for word in words for form in _forms(word) for s in _spellings(form, tokenizer)}
        texts = token_texts(tokenizer)
        return cls(name, tuple(words), _tables(spellings, texts))

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Every token of every match; the edges of a block count as word boundaries."""
        tables = self._placed.get(ids_BT.device)
        if tables is None:
            self._placed[ids_BT.device] = tables = self._tables.to(ids_BT.device)
        return Columns(_match(ids_BT, tables))


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of every vocabulary entry, with its leading space; incomplete characters become U+FFFD."""
    vocabulary = tokenizer.get_vocab()
    texts = [""] * (max(vocabulary.values()) + 1)
    byte_of = byte_values()
    byte_level = "Ġ" in vocabulary
    special = set(tokenizer.all_special_ids)
    for piece, index in vocabulary.items():
        if index in special:
            texts[index] = ""
        elif byte_level:
            raw = bytes(byte_of[c] for c in piece if c in byte_of)
            texts[index] = raw.decode("utf-8", errors="replace")
        else:
            texts[index] = piece.replace("▁", " ")
    return texts


def _forms(word: str) -> list[str]:
    forms = [word, word[:1].upper() + word[1:], word.upper()]
    return list(dict.fromkeys(forms + [form.replace("'", "’") for form in forms]))


def _spellings(form: str, tokenizer: PreTrainedTokenizerBase) -> Iterable[_Spelling]:
    for before in _BEFORE:
        encoded = tokenizer(before + form, add_special_tokens=False, return_offsets_mapping=True)
        first, last = len(before), len(before) + len(form)
        inside = [
            at for at, (start, end) in enumerate(encoded["offset_mapping"]) if end > first and start < last
        ]
        if not inside:
            continue
        # A token that includes the context before the word contains the boundary.
        shares_context = encoded["offset_mapping"][inside[0]][0] < first
        ids = tuple(encoded["input_ids"][at] for at in inside)
        marks_space = str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(("Ġ", "▁"))
        open_left = _is_letter(form[0]) and not shares_context and not marks_space
        yield _Spelling(ids, open_left, _is_letter(form[-1]))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _tables(spellings: Iterable[_Spelling], texts: list[str]) -> _Tables:
    size = len(texts)
    edges: dict[tuple[int, int], int] = {}
    ends = [0]
    longest = 0
    for spelling in sorted(spellings, key=lambda s: s.token_ids):
        state = _ROOT
        for token in spelling.token_ids:
            if (state, token) not in edges:
                edges[state, token] = len(ends)
                ends.append(0)
            state = edges[state, token]
        demands = 1 | 2 * spelling.open_left | 4 * spelling.open_right
        ends[state] = demands if ends[state] == 0 else ends[state] & demands
        longest = max(longest, len(spelling.token_ids))
    ordered = sorted((state * size + token, target) for (state, token), target in edges.items())
    return _Tables(
        torch.tensor([key for key, _ in ordered]),
        torch.tensor([target for _, target in ordered]),
        torch.tensor(ends),
        torch.tensor([bool(text) and _is_letter(text[0]) for text in texts]),
        torch.tensor([bool(text) and _is_letter(text[-1]) for text in texts]),
        longest,
    )


def _match(ids_BT: torch.Tensor, tables: _Tables) -> torch.Tensor:
    """bool [B, T], True on every token of a match."""
    B, T = ids_BT.shape
    size = tables.starts_letter_V.numel()
    ids_BT = ids_BT.clamp(max=size - 1)
    border_B1 = torch.zeros(B, 1, dtype=torch.bool, device=ids_BT.device)
    # Whether the token before position t ends with a letter, and whether the token at t starts with one.
    after_letter_BT = torch.cat([border_B1, tables.ends_letter_V[ids_BT][:, :-1]], 1)
    letter_next_BT = torch.cat([tables.starts_letter_V[ids_BT], border_B1], 1)
    state_BT = torch.full_like(ids_BT, _ROOT)
    marked_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for depth in range(min(tables.longest, T)):
        # state_BT[:, t] is the state after the tokens t … t+depth-1; extend it by token t+depth.
        state_BT = _advance(state_BT[:, : T - depth], ids_BT[:, depth:], tables, size)
        ends = tables.ends_S[state_BT.clamp(min=_ROOT)] * (state_BT > _ROOT)
        found = (ends & 1).bool()
        found &= ~((ends & 2).bool() & after_letter_BT[:, : T - depth])
        found &= ~((ends & 4).bool() & letter_next_BT[:, depth + 1 :])
        for at in range(depth + 1):
            marked_BT[:, at : at + T - depth] |= found
    return marked_BT


def _advance(state_BN: torch.Tensor, ids_BN: torch.Tensor, tables: _Tables, size: int) -> torch.Tensor:
    key_BN = state_BN * size + ids_BN
    at_BN = torch.searchsorted(tables.edges_E, key_BN).clamp(max=tables.edges_E.numel() - 1)
    hit_BN = (tables.edges_E[at_BN] == key_BN) & (state_BN >= _ROOT)
    return torch.where(hit_BN, tables.next_E[at_BN], _DEAD)
