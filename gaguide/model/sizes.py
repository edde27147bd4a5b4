"""Configurations of GPT-2 in a named size (`gaguide.config.sizes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaguide.config.sizes import SIZES, Size

if TYPE_CHECKING:
    from transformers import GPT2Config

__all__ = ["GPT2_VOCABULARY", "SIZES", "Size", "scratch_config"]

GPT2_VOCABULARY = 50_257
"""Entries of GPT-2's vocabulary, `<|endoftext|>` included."""


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
