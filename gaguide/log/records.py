"""metrics.jsonl: a run's numbers as records, one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaguide.files import without_nonfinite, write_text
from gaguide.log.console import say


class MetricsFile:
    """Appends step records to metrics.jsonl; a resumed run drops the records of steps it repeats."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = (
            [record for record in read_metrics(path) if record["step"] <= resume_step]
            if path.exists()
            else []
        )
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash truncated."""
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(without_nonfinite(dict(record)), ensure_ascii=False) + "\n"
