"""Tokens as bytes and as text: readable labels, in which white space and control characters are visible."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

from gaguide.data.format.encoder import byte_characters

SPACE, NEWLINE, TAB, NO_BREAK_SPACE = "␣", "↵", "⇥", "⍽"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def token_labels(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """One label per token id, never empty.

    A character that is split over several tokens is shown in each of them, with the number of its part:
    😀[1/2] 😀[2/2]. Bytes of characters that stay incomplete are shown in hexadecimal.
    """
    pieces = tokenizer.convert_ids_to_tokens([int(token) for token in ids])
    special = set(tokenizer.all_special_tokens)
    spell = _speller(tokenizer)
    raws = [b"" if piece in special else spell(piece) for piece in pieces]
    shown: list[list[str]] = [[] for _ in raws]
    owner = [index for index, raw in enumerate(raws) for _ in raw]
    whole, at = b"".join(raws), 0
    while at < len(whole):
        width = _character_width(whole, at)
        owners = list(dict.fromkeys(owner[at : at + max(width, 1)]))
        if width == 0:  # not a character
            shown[owner[at]].append(f"<{whole[at]:02X}>")
        else:
            text = _visible(whole[at : at + width].decode())
            for part, index in enumerate(owners, 1):
                shown[index].append(text if len(owners) == 1 else f"{text}[{part}/{len(owners)}]")
        at += max(width, 1)
    return [
        piece if piece in special else "".join(parts).replace("<0D>" + NEWLINE, NEWLINE) or "∅"
        for piece, parts in zip(pieces, shown)
    ]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """UTF-8 bytes of every vocabulary entry, with its leading space; special tokens are empty."""
    vocabulary = tokenizer.get_vocab()
    raws = [b""] * (max(vocabulary.values()) + 1)
    special, spell = set(tokenizer.all_special_ids), _speller(tokenizer)
    for piece, index in vocabulary.items():
        if index not in special:
            raws[index] = spell(piece)
    return raws


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary writes every byte as a printable character (a space as Ġ), as GPT-2's does.

    Vocabularies of other kinds may contain Ġ as a letter.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = tokenizer.get_vocab()
        return "▁" not in vocabulary and any("Ġ" in piece for piece in vocabulary)
    parts = [part for part in (backend.decoder, backend.pre_tokenizer) if part is not None]
    return any('"ByteLevel"' in json.dumps(json.loads(part.__getstate__())) for part in parts)


def _speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """A function from a vocabulary entry to its UTF-8 bytes."""
    byte_level, added = is_byte_level(tokenizer), tokenizer.get_added_vocab()
    values = byte_values()

    def spell(piece: str) -> bytes:
        code = None if byte_level else _BYTE_PIECE.fullmatch(piece)
        if piece in added and code is None:
            return piece.encode("utf-8", "surrogatepass")
        if byte_level:
            return bytes(values[c] for c in piece if c in values)
        return bytes([int(code[1], 16)]) if code else piece.replace("▁", " ").encode("utf-8", "surrogatepass")

    return spell


def _character_width(raw: bytes, at: int) -> int:
    """Bytes of the character that starts at `at`; 0 if none starts there."""
    for width in range(1, 5):
        try:
            raw[at : at + width].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return width
    return 0


def _visible(character: str) -> str:
    marks = {" ": SPACE, "\n": NEWLINE, "\t": TAB, "\u00a0": NO_BREAK_SPACE}
    if character in marks:
        return marks[character]
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp", "Zs")
    return f"<{ord(character):02X}>" if hidden else character


@cache
def byte_values() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for (the inverse of `byte_characters`)."""
    return {character: byte for byte, character in enumerate(byte_characters())}
