"""Texts of data and models on a terminal."""

from __future__ import annotations


def escape_control_characters(text: str) -> str:
    """`text` with escapes for line ends and control characters, which a terminal would act on."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
