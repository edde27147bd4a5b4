"""GPT-2's sizes, and tiny ones for training on two CPU cores, by name. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


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
