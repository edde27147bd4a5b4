"""Whether the files of a source have the field that holds the text, by a look at the start of each."""

from __future__ import annotations

import json
from itertools import islice

from gaguide.data.build.documents import unreadable
from gaguide.data.build.json_rows import field_names, has_row_per_line
from gaguide.data.build.kinds import SourceFile
from gaguide.data.build.row_fields import RowFields, field_of
from gaguide.data.build.rows import BYTE_ORDER_MARK, open_bytes, open_raw
from gaguide.data.build.table_rows import check_row_columns, open_arrow, rows_of_csv
from gaguide.errors import Fault, FaultCollector, UserError, suggestion

_LOOK_BYTES = 1 << 16


def check_columns(file: SourceFile, fields: RowFields) -> None:
    """Raise a `UserError` unless a CSV or Arrow file has the column of the text."""
    try:
        if file.kind == "arrow":
            with open_raw(file) as raw:
                check_row_columns(open_arrow(raw)[0], fields, file.url)
        else:
            with open_bytes(file) as stream:
                list(islice(rows_of_csv(stream, fields.text, file.name, file.url), 1))
    except UserError:
        raise
    except Exception as error:  # from Arrow, a decompressor or a store's transport
        raise unreadable(file, error) from error


class SeenFields:
    """The fields that the first rows of JSON files have."""

    def __init__(self, fields: RowFields) -> None:
        self.wanted = fields
        self._names: dict[str, None] = {}
        self._seen: set[str] = set()
        self._file: SourceFile | None = None

    def look(self, file: SourceFile) -> bool:
        """Look at the start of a JSON file; whether it has no row per line, as an array."""
        try:
            with open_bytes(file) as stream:
                start = stream.read(_LOOK_BYTES)
        except Exception as error:  # from a decompressor or a store's transport
            raise unreadable(file, error) from error
        self._file = self._file or file
        if not has_row_per_line(start, file.name):
            self._look_at_values(start)
            return True
        lines = start.removeprefix(BYTE_ORDER_MARK).split(b"\n")
        # The last line may be cut; a file of one short line has no line break.
        for line in lines[: len(lines) if len(start) < _LOOK_BYTES else -1]:
            try:
                self._see(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return False

    def _look_at_values(self, start: bytes) -> None:
        text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n[")
        decoder = json.JSONDecoder()
        while text:
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                return
            self._see(value)
            text = text[end:].lstrip(", \t\r\n")

    def _see(self, row: object) -> None:
        if isinstance(row, dict):
            self._names.update(dict.fromkeys(field_names(row)))
            for wanted in self.wanted.names:
                parent, _, name = wanted.rpartition(".")
                holder = field_of(row, parent) if parent else row
                if wanted in row or (isinstance(holder, dict) and name in holder):
                    self._seen.add(wanted)

    def raise_if_absent(self) -> None:
        """Raise a `UserError` if the rows that were seen have fields, but none has that of the text."""
        if not self._names or self._file is None:
            return
        with FaultCollector() as faults:
            for wanted in self.wanted.names:
                if wanted not in self._seen:
                    faults.add(self._absent(wanted, self._file))

    def _absent(self, wanted: str, file: SourceFile) -> Fault:
        option, content = "--text-field", "text"
        if self.wanted.chat is not None:
            option, content = "--chat", "messages"
        elif wanted in self.wanted.spans:
            option, content = "--spans", "spans"
        names = list(self._names)
        near = suggestion(wanted, names)
        known = "" if near.startswith("known") else f" The fields are {', '.join(names[:20])}"
        problem = f"no row at the start of {file.url} has this field"
        return Fault(option, problem, f"name the field that holds the {content}: {near}{known}", wanted)
