"""Tokens as text: readable labels, in which spaces, line breaks and control characters are visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

from gaguide.data.format.tokenizer import byte_characters

SPACE, NEWLINE, TAB = "␣", "↵", "⇥"


def token_labels(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """One label per token id, never empty; bytes of incomplete characters are shown in hexadecimal."""
    pieces = tokenizer.convert_ids_to_tokens([int(token) for token in ids])
    # Only byte-level vocabularies write every byte as a printable character (a space as Ġ).
    byte_level = any("Ġ" in piece for piece in tokenizer.get_vocab())
    special = set(tokenizer.all_special_tokens)
    return [
        piece if piece in special else _visible(_decode(piece) if byte_level else piece.replace("▁", " "))
        for piece in pieces
    ]


def _visible(text: str) -> str:
    text = text.replace(" ", SPACE).replace("\r\n", NEWLINE).replace("\n", NEWLINE).replace("\t", TAB)
    shown = (
        f"<{ord(char):02X}>" if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") else char
        for char in text
    )
    return "".join(shown) or "∅"


def _decode(piece: str) -> str:
    """Text of a byte-level piece; a piece with other characters (an added token) is returned as is."""
    try:
        raw = bytes(byte_values()[char] for char in piece)
    except KeyError:
        return piece
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"<{byte:02X}>" for byte in raw)


@cache
def byte_values() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for (the inverse of `byte_characters`)."""
    return {character: byte for byte, character in enumerate(byte_characters())}
