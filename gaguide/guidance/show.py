"""Patterns as text for a terminal: their tokens in a vocabulary, and their matches in a text."""

from __future__ import annotations

import torch
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gaguide.guidance.lexicon import Lexicon
from gaguide.guidance.patterns import Offset, Pattern, TokenSet
from gaguide.guidance.words import WordSet

_SPACES = str.maketrans({"Ġ": "␣", "▁": "␣", "Ċ": "⏎"})


def describe(
    name: str, pattern: Pattern, lexicon: Lexicon | None, tokenizer: PreTrainedTokenizerBase
) -> Text:
    """One paragraph with the words or vocabulary pieces of a pattern; a leading space is shown as ␣."""
    if isinstance(pattern, WordSet):
        return Text(f"{name}: {len(pattern.words)} words and phrases: {', '.join(pattern.words)}")
    if not isinstance(pattern, TokenSet):
        return Text(f"{name}: depends on positions only")
    ids = sorted(pattern.token_ids)
    pieces = ", ".join(piece.translate(_SPACES) for piece in tokenizer.convert_ids_to_tokens(ids))
    text = Text(f"{name}: {len(ids)} vocabulary pieces: {pieces}")
    spelled = {piece.lstrip("Ġ▁") for piece in tokenizer.convert_ids_to_tokens(ids)}
    absent = [piece for piece in dict.fromkeys(lexicon.pieces if lexicon else ()) if piece not in spelled]
    if absent:
        text.append(f"\nnot in this vocabulary: {', '.join(absent)}")
    return text


def mark_matches(text: str, pattern: Pattern, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text with matched tokens in [brackets], in bold, and their number."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids_BT = torch.tensor([encoded["input_ids"]], dtype=torch.long)
    target = pattern.target(ids_BT)
    if isinstance(target, Offset):
        return Text(f"every token attends to the one {target.distance} before it")
    marks = target.marked_BT[0].tolist()
    shown, done = Text(), 0
    for (start, end), marked in zip(encoded["offset_mapping"], marks):
        shown.append(text[done:start])
        piece = text[max(start, done) : end]
        inner = piece.lstrip()
        shown.append(piece[: len(piece) - len(inner)])
        shown.append(f"[{inner}]" if marked else inner, style="bold" if marked else "")
        done = max(done, end)
    shown.append(text[done:])
    shown.append(f"\n{sum(marks)} of {len(marks)} tokens", style="dim")
    return shown
