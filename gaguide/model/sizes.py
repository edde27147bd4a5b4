"""GPT-2's sizes, and tiny ones for training on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GPT2Config

GPT2_VOCABULARY = 50_257
"""Entries of GPT-2's vocabulary, `<|endoftext|>` included."""


@dataclass(frozen=True)
class Size:
    """The size of a GPT-2."""

    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads in each block."""
    width: int
    """Hidden size."""
    positions: int = 1024
    """Longest sequence, in tokens."""


SIZES = {
    "pico": Size(2, 4, 32, 256),
    "nano": Size(2, 4, 64, 256),
    "micro": Size(3, 4, 96, 256),
    "tiny": Size(4, 4, 128, 256),
    "gpt2": Size(12, 12, 768),
    "gpt2-medium": Size(24, 16, 1024),
    "gpt2-large": Size(36, 20, 1280),
    "gpt2-xl": Size(48, 25, 1600),
}


def scratch_config(size: Size, vocab_size: int, end_of_text: int | None) -> GPT2Config:
    """Configuration of a GPT-2 of that size; `end_of_text` is the id of the token that ends a document."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=size.positions,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
