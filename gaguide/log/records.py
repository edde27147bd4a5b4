"""metrics.jsonl: numbers travel as records, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaguide.files import without_nonfinite, write_text
from gaguide.log.console import say


class MetricsFile:
    """Appends step records to metrics.jsonl; a resumed run drops the records it is about to make again."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = (
            [record for record in read_metrics(path) if record["step"] <= resume_step]
            if path.exists()
            else []
        )
        write_text(path, "".join(_line(record) for record in kept))
        self._file = path.open("ab", buffering=0)
        self._owing = b""

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it is the system's, and on its way to disk, when this returns.

        Where the disk is full the record is kept, said aloud and tried again with the next: no line is ever
        cut, and a run does not die between two checkpoints for want of one. `flush` is strict.
        """
        owed = bool(self._owing)
        self._owing += _line(record).encode("utf-8")
        try:
            self.flush()
        except OSError as error:
            if not owed:
                say(f"{self._file.name} cannot be written ({error.strerror}); its records are kept in memory")

    def flush(self) -> None:
        """Write the records that an earlier `append` could not; `OSError` where that fails again."""
        end, left = self._file.seek(0, os.SEEK_END), self._owing
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)  # a line of which only a part was taken
            raise
        self._owing = b""

    def sync(self) -> None:
        """`flush`, and all records are on disk when this returns: a power cut takes none of them."""
        self.flush()
        os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(without_nonfinite(dict(record)), ensure_ascii=False) + "\n"
