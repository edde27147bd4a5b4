"""Record files (metrics.jsonl and its like): one JSON object per line. Damaged lines do not affect others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.files import without_nonfinite, write_text
from gaguide.log.console import say


class MetricsFile:
    """Appends step records to metrics.jsonl; a resumed run drops the records of steps it repeats.

    Damaged lines are moved to NAME.jsonl.damaged, and their number is reported.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        found = read_lines(path) if path.exists() else Lines((), ())
        kept = [record for record in found.records if has_step(record) and record["step"] <= resume_step]
        if found.damaged:
            with path.with_name(f"{path.name}.damaged").open("ab") as aside:
                aside.writelines(line + b"\n" for line in found.damaged)
            say(f"{found.describe(path)}, and moved to {path.name}.damaged")
        write_text(path, "".join(_line(record) for record in kept))
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def append(self, record: Mapping[str, Any]) -> None:
        """Hand one record to the operating system.

        If the disk is full, report it once, keep the record in memory and retry with the next one, so that a
        run does not end between two checkpoints for a log. Lines are never truncated. `flush` is strict.
        """
        was_pending = bool(self._pending)
        self._pending += _line(record).encode("utf-8")
        try:
            self.flush()
        except OSError as error:
            if not was_pending:
                say(f"{self._file.name} cannot be written ({error.strerror}); its records are kept in memory")

    def flush(self) -> None:
        """Write the records that an earlier `append` could not; `OSError` if that fails again."""
        end, rest = self._file.seek(0, os.SEEK_END), self._pending
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)  # remove a partial line
            raise
        self._pending = b""

    def sync(self) -> None:
        """`flush`, then fsync: the records survive a power failure."""
        self.flush()
        os.fsync(self._file.fileno())


@dataclass(frozen=True)
class Lines:
    """The lines of a record file."""

    records: tuple[dict[str, Any], ...]
    """Every line that is a JSON object, in order."""
    damaged: tuple[bytes, ...]
    """The other lines, except empty ones and a last one cut off by a crash."""

    def describe(self, path: Path) -> str:
        """How many lines of the file are damaged, in words."""
        count, total = len(self.damaged), len(self.damaged) + len(self.records)
        verb = "is" if count == 1 else "are"
        return f"{path}: {count} of {total} lines {verb} damaged and left out; the others are kept"


def read_lines(path: Path) -> Lines:
    """Read a record file; a line that is not UTF-8, not JSON or not an object is damaged."""
    records, damaged = [], []
    lines = path.read_bytes().split(b"\n")
    for at, line in enumerate(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip() and at < len(lines) - 1:
            damaged.append(line)
    return Lines(tuple(records), tuple(damaged))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a record file; the number of damaged lines is reported, once per file."""
    found = read_lines(path)
    if found.damaged and (path, len(found.damaged)) not in _reported:
        _reported.add((path, len(found.damaged)))
        say(found.describe(path), error=True)
    return list(found.records)


def has_step(record: Mapping[str, Any]) -> bool:
    """Whether a record has the step after which it was made, as those of a run do."""
    step = record.get("step")
    return isinstance(step, int) and not isinstance(step, bool)


_reported: set[tuple[Path, int]] = set()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(without_nonfinite(dict(record)), ensure_ascii=False) + "\n"
