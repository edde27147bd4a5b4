"""Finds the number in what a model wrote."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def first_number(text: str) -> float | None:
    """The first number in the first line of `text` that is not empty; thousands may have commas."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    found = _NUMBER.search(line)
    return float(found.group().replace(",", "")) if found else None
