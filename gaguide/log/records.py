"""Numbers travel as records: one JSON object a line, files that exist whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaguide.log.console import say


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, of bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, as `write_text` does; NaN and infinity become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


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
    return json.dumps(_finite(dict(record)), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
