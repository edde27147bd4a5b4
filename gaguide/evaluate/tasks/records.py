"""Rows of JSON Lines, CSV and TSV files, with the line that each begins at."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, FaultCollector, UserError

MAX_FAULTS = 200
"""Faults that are listed for a file; the rest are counted."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SpelledFloat(float):
    """A float that keeps its text in the file, as `3.50`."""

    text: str

    def __new__(cls, text: str | float) -> SpelledFloat:
        value = super().__new__(cls, text)
        value.text = str(text)
        return value


@dataclass(frozen=True)
class Record:
    """A row of data before it is checked."""

    line: int
    """Line of a file, or row number of other data, counted from 1."""
    columns: Mapping[str, Any]
    """The row's values by column."""


def read_records(
    path: Path, collected: FaultCollector | None = None, header: Sequence[str] | None = None
) -> list[Record]:
    """Rows of a .jsonl, .csv or .tsv file; a file of another name is JSON Lines.

    header: names of the columns of a CSV file that does not begin with them.

    Lines that are not UTF-8 or not JSON are faults: `collected` receives all of them, and the other rows are
    returned. Without it, raises `UserError` with all of them.
    """
    faults = FaultCollector() if collected is None else collected
    lines = []
    for number, raw in enumerate(path.read_bytes().removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        try:
            lines.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 ({error.reason})"
            faults.add(Fault(f"{path}:{number}", problem, "save the file as UTF-8"))
            lines.append("")
    if path.suffix in _DELIMITERS:
        records = _csv_records(lines, path, faults, header)
    else:
        if header is not None:
            faults.add(
                Fault(str(path), "header is given for a file that is not CSV or TSV", "remove `header`")
            )
        records = _json_records(lines, path, faults)
    if collected is None:
        raise_some(faults, path)
    return records


def raise_some(faults: FaultCollector, source: Path | str) -> None:
    """Raise the collected faults, if any: at most `MAX_FAULTS`, then how many more there are."""
    if len(faults.faults) > MAX_FAULTS:
        problem = f"{len(faults.faults) - MAX_FAULTS} more faults"
        rest = Fault(str(source), problem, "correct the ones listed first")
        raise UserError([*faults.faults[:MAX_FAULTS], rest])
    faults.raise_if_any()


def _json_records(lines: Sequence[str], path: Path, faults: FaultCollector) -> list[Record]:
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line, parse_float=SpelledFloat)
            if not isinstance(columns, dict):
                raise ValueError("not an object")
            records.append(Record(number, columns))
        except (ValueError, RecursionError) as error:
            problem = f"is not a JSON object ({error})"
            faults.add(Fault(f"{path}:{number}", problem, "write one JSON object per line"))
    return records


def _csv_records(
    lines: Sequence[str], path: Path, faults: FaultCollector, header: Sequence[str] | None
) -> list[Record]:
    csv.field_size_limit(1 << 30)
    delimiter = _DELIMITERS[path.suffix]
    text = io.StringIO("\n".join(lines), newline="")
    reader = csv.DictReader(text, fieldnames=header, delimiter=delimiter)
    names = [name for name in reader.fieldnames or () if name]  # reads the header, which may span lines
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add(Fault(f"{path}:1", f"duplicate column {name!r}", "give each column its own name"))
    records, line = [], reader.line_num + 1
    for row in reader:
        extra: Any = row.pop(None, ())
        if any(extra):
            named = len(reader.fieldnames or ())
            problem = f"has {named + len(extra)} cells, the header {named}"
            faults.add(Fault(f"{path}:{line}", problem, "put texts that contain commas into double quotes"))
        if path.suffix == ".tsv" and any("\n" in str(value) for value in row.values()):
            problem = "a cell that begins with a quotation mark continues on the next line"
            remedy = 'close it, or put the whole cell into quotation marks and double those inside ("")'
            faults.add(Fault(f"{path}:{line}", problem, remedy))
        # An unnamed first column is pandas' index.
        records.append(Record(line, {key: value for key, value in row.items() if key}))
        line = reader.line_num + 1
    return records
