"""Numbers, names and rows as text, the same in every report."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from gaguide.evaluate.compare.records import TaskComparison
from gaguide.evaluate.results.metric_names import MARK_NOTES, MARKS, Doubt
from gaguide.numbers import fixed
from gaguide.stats.groups import ALPHA, FEW

ABSENT = "–"
"""Shown for a missing value."""
DIRECTIONS = {"high": " ↑", "low": " ↓"}
"""Better direction of a metric → arrow after its name: ↑ higher is better, ↓ lower is better."""


def percent(share: float) -> str:
    """A relative change in percent with its sign, never "-0.00%"."""
    return f"{fixed(100 * share, 2, '+')}%"


def differences_shown(tests: Sequence[TaskComparison], digits: int) -> Iterator[str]:
    """Tasks whose difference is shown, with metric and difference: "better on …", "worse on …"."""
    for word, wanted in (("better", True), ("worse", False), ("different", None)):
        named = [
            f"{one.task} ({one.metric} {fixed(one.difference, digits, '+')})"
            for one in tests
            if one.is_shown and one.improved is wanted
        ]
        if named:
            yield f"{word} on {', '.join(named)}"


def small_number(number: float, digits: int) -> str:
    """A positive number with `digits` decimals, "< 0.0001" (with four) below the last of them."""
    smallest = 10.0**-digits
    return f"< {smallest:.{digits}f}" if 0 < number < smallest else fixed(number, digits)


def known_mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def counted(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """`[low, high]`; empty where either is missing."""
    return "" if low is None or high is None else f"[{fixed(low, digits)}, {fixed(high, digits)}]"


def p_value(p: float | None) -> str:
    """A p value with three decimals, "< 0.001" below that."""
    return ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_words(p: float | None) -> str:
    """`p = 0.012`, `p < 0.001`; empty where there is none."""
    text = p_value(p)
    return "" if p is None else f"p {text}" if text.startswith("<") else f"p = {text}"


def head_name(one: Any) -> str:
    """The layer and head of a record that has both, in words."""
    return f"layer {one.layer} · head {one.head}"


def before_after(before: float | None, after: float | None) -> str:
    """Attention before and after a training, `0.021 → 0.880`; `ABSENT` where either is missing."""
    return ABSENT if before is None or after is None else f"{before:.3f} → {after:.3f}"


def smallest_p(tests: int) -> str:
    """A sentence on how small p can be, corrected over `tests` tests, and what McNemar's needs for 0.05."""
    needed = math.floor(math.log2(max(tests, 1) / ALPHA)) + 1
    return (
        " The p of a loss has no smallest value (where fewer than ten of 5,000 resampled means lie beyond 0, "
        f"or there are fewer than {FEW} examples or groups, it is that of a paired t-test). McNemar's of c "
        f"changed examples (groups) is at least 2^-c: with fewer than {needed} of them it cannot be below "
        f"0.05, corrected over {tests}."
    )


def mark(doubt: Doubt | None) -> str:
    """The mark after an accuracy that says nothing about a model's answers; "" for any other."""
    return "" if doubt is None else MARKS[doubt]


def mark_notes(doubts: Iterable[Doubt | None]) -> list[str]:
    """The footnotes of the marks in a table with these doubts."""
    found = set(doubts)
    return [note for doubt, note in MARK_NOTES.items() if doubt in found]


def shorten(name: str, length: int = 32) -> str:
    """A name cut to what a legend or an axis can hold."""
    return name if len(name) <= length else name[: length - 1] + "…"


def constant_note(count: int) -> str:
    """A further sentence on comparisons of constant answers; empty without any."""
    return f" Another {count} are of constant answers (‡) and measure nothing." if count else ""


def slug(text: str) -> str:
    """A name that is safe in files, links and labels."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def shown(value: float | None, spec: str) -> str:
    """A number in a format such as ".3f"; `ABSENT` where there is none."""
    return ABSENT if value is None else format(value, spec)


def change(value: float | None, digits: int = 4) -> str:
    """A difference with its sign; `ABSENT` where there is none."""
    return ABSENT if value is None else fixed(value, digits, "+")


def excludes_zero(low: float | None, high: float | None) -> bool:
    """Whether an interval is known and 0 lies outside it."""
    return low is not None and high is not None and not low <= 0 <= high


def tally(words: Iterable[str], separator: str = "; ") -> str:
    """Each word with how often it occurs, the most frequent first: `3 used; 1 harmful`."""
    return separator.join(f"{count} {word}" for word, count in Counter(words).most_common())


def first_few(words: Collection[str], separator: str = ", ", limit: int = 6) -> str:
    """The first of them, with an ellipsis where there are more."""
    return separator.join(list(words)[:limit]) + (" …" if len(words) > limit else "")


def words(value: Any) -> str:
    """A setting or version in words; `ABSENT` where there is none."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or ABSENT
    return ABSENT if value is None else str(value)


def end_of(text: str, length: int) -> str:
    """A text cut to its last `length` characters."""
    return text if len(text) <= length else "…" + text[-length:]


def records_csv(kind: type[Any], rows: Iterable[Any]) -> str:
    """Records of the dataclass `kind` as CSV, a column for each field."""
    names = [column.name for column in fields(kind)]
    return csv_text(names, ([getattr(row, name) for name in names] for row in rows))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a heading line; floats keep every digit, None is empty, lists are joined by `;`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_value(value) for value in row] for row in rows)
    return file.getvalue()


def _csv_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ";".join(f"{key}={item}" for key, item in value.items())
    return ";".join(map(str, value)) if isinstance(value, (list, tuple)) else value
