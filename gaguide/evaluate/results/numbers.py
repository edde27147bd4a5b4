"""Finds the number in a generated text."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def first_number(text: str) -> float | None:
    """The first number in the first non-blank line of `text`; thousands may be separated by commas."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    found = _NUMBER.search(line)
    return float(found.group().replace(",", "")) if found else None
