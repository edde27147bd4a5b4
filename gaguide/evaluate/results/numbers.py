"""Functions of numbers that several metrics use, and the number in a generated text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def first_number(text: str) -> float | None:
    """The first number in the first non-blank line of `text`; thousands may be separated by commas."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    found = _NUMBER.search(line)
    return float(found.group().replace(",", "")) if found else None


def first_largest(values: Sequence[float]) -> int:
    """Index of the largest value, the first of equals."""
    return max(range(len(values)), key=lambda at: values[at])


def log_sum_exp(values: Sequence[float]) -> float:
    """Logarithm of the sum of the exponentials of `values`."""
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
