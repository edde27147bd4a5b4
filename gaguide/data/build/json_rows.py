"""Rows of JSON: one value a line, an array, or values that span lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.rows import BYTE_ORDER_MARK, Reason, Row

_CHUNK_BYTES = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")
_LONGEST_VALUE = 1 << 30


def field_names(row: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields of a row, nested ones by dotted names."""
    names = []
    for name, value in row.items():
        nested = field_names(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        names += nested or [f"{prefix}{name}"]
    return names


def row_of_line(line: bytes, fields: RowFields) -> Row:
    """The row of one line of JSON."""
    try:
        row = json.loads(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError:
        return Reason.INVALID_UTF8
    except (ValueError, RecursionError):
        return Reason.MALFORMED
    return fields.row(row)


def rows_of_lines(stream: Iterable[bytes], fields: RowFields) -> Iterator[Row]:
    """The rows of JSON lines; blank lines are skipped."""
    for line in stream:
        if line.removeprefix(BYTE_ORDER_MARK).strip():
            yield row_of_line(line, fields)


def has_row_per_line(start: bytes, name: str) -> bool:
    """Whether a file that begins with `start` has one JSON value a line.

    Otherwise it is an array, or (only in files named .json) values that span lines.
    """
    head = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    line, newline, _ = head.partition(b"\n")
    is_json = ".json" in name.lower() and ".jsonl" not in name.lower()
    if head.startswith(b"["):
        # A line that is a list of its own is a row; "[" alone, or an array without line breaks, is not.
        return not is_json and bool(newline) and _is_json(line)
    return not is_json or not head.startswith(b"{") or not newline or _is_json(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def rows_of_values(stream: IO[bytes], fields: RowFields) -> Iterator[Row]:
    """The rows of a JSON array, or of values one after another; memory is bounded by the largest value."""
    for value in _values(stream):
        yield fields.row(value)


def _values(stream: IO[bytes]) -> Iterator[Any]:
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text, at, size, count, in_array, is_first = "", 0, _CHUNK_BYTES, 0, False, True
    at_end = False
    while True:
        match = _BETWEEN.match(text, at)
        at = match.end() if match else at
        if is_first and at < len(text):
            text = text.removeprefix("\ufeff") if at == 0 else text
            in_array = text.startswith("[", _BETWEEN.match(text).end())  # type: ignore[union-attr]
            at, is_first = at + in_array, False
            continue
        if in_array and text.startswith("]", at):
            rest = text[at + 1 :].strip()
            if rest or stream.read(_CHUNK_BYTES).strip():
                raise ValueError("its JSON array is followed by more data")
            return
        if at < len(text):
            try:
                value, end = scan(text, at)
            except RecursionError:
                raise ValueError(f"its JSON is nested too deeply, after {count:,} rows") from None
            except ValueError as error:
                if at_end or len(text) - at > _LONGEST_VALUE:
                    raise ValueError(f"it is not valid JSON after {count:,} rows ({error})") from None
            else:
                # A value that ends where the text does may continue.
                if end < len(text) or at_end:
                    count, at, size = count + 1, end, _CHUNK_BYTES
                    yield value
                    continue
        elif at_end:
            if in_array:
                raise ValueError(f"its JSON array does not end, after {count:,} rows")
            return
        # Twice as much each time, so that a large value is not scanned many times.
        chunk = stream.read(size)
        at_end, size = not chunk, 2 * size
        text, at = text[at:] + decode(chunk, final=at_end), 0
