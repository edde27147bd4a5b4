"""Whole numbers as people write them (`1000000`, `1e6`, `2.5e3`), and numbers in records."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

_EXPONENT = re.compile(r"\s*\d+(\.\d+)?[eE]\+?\d{1,2}\s*")


def whole_number(value: Any) -> Any:
    """`1e9` and `2.5e3` as an int, which YAML 1.1 reads as text; any other value unchanged."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        number = Decimal(value)
        return int(number) if number == int(number) else value
    return value


def parse_whole(text: str) -> int:
    """A whole number in an argument of a command; ValueError if it is not one."""
    return int(whole_number(text))


parse_whole.__name__ = "whole number"  # its name in argparse's message: "invalid whole number value: 'x'"


def finite(value: Any) -> float | None:
    """A finite number; None for NaN, infinity and anything else."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def fixed(number: float, digits: int, sign: str = "") -> str:
    """The number with `digits` decimals, never "-0.000"; `sign` is a format's sign option, such as "+"."""
    return f"{round(number, digits) + 0.0:{sign}.{digits}f}"
