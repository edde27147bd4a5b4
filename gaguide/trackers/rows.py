"""Numbers of a run by step, read from its record files as they grow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gaguide.log import run_files

Kind = Literal["train", "validation", "evaluation"]
"""Kind of a row; the first part of its numbers' names."""

FILES: dict[Kind, str] = {
    "train": run_files.METRICS,
    "validation": run_files.VALIDATIONS,
    "evaluation": run_files.EVALUATIONS,
}
"""Kind → the record file with its rows."""

STEP_NUMBERS = (
    "loss", "lm_loss", "guidance_loss", "guided_attention", "grad_norm", "lr", "tokens_per_second", "mfu",
    "peak_memory", "guidance_weight",
)  # fmt: skip
"""Numbers of a logged step that monitors and trackers show."""

_LOSSES = ("loss", "lm_loss")
"""Always measured: null in a record is a value that was not finite."""
_CHUNK = 4_000_000
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Row:
    """The numbers of one kind after one step."""

    kind: Kind
    """Kind of the numbers."""
    step: int
    """Optimizer steps done."""
    numbers: Mapping[str, float]
    """Name, such as `train/loss` → value; NaN where the loss was not finite."""


class Rows:
    """The rows of a growing record file. Memory does not grow with it."""

    def __init__(self, kind: Kind, folder: Path, measure: str | None) -> None:
        self.kind, self.measure = kind, measure
        self._path = folder / FILES[kind]
        self._at = 0

    def pending(self) -> Iterator[tuple[list[Row], int]]:
        """Pieces of the file after the last one that was `done`: its rows, and the argument for `done`."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            while piece := file.read(_CHUNK):
                piece += file.readline()
                whole = piece[: piece.rfind(b"\n") + 1]  # the last line may not be complete yet
                if not whole:
                    return
                end = file.tell() - len(piece) + len(whole)
                yield [row for line in whole.splitlines() if (row := self._row(line))], end

    def done(self, end: int) -> None:
        """Note that everything before `end` was sent."""
        self._at = end

    def _row(self, line: bytes) -> Row | None:
        try:
            record = json.loads(line)
        except ValueError:
            return None  # a damaged line, which its reader reports
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            return None
        if self.measure is not None and record.get("measure") != self.measure:
            return None
        numbers = dict(_numbers(self.kind, record))
        return Row(self.kind, record["step"], numbers) if numbers else None


def _numbers(kind: Kind, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if kind == "evaluation":
        for task, found in record.get("tasks", {}).items():
            for metric, of in found.get("metrics", {}).items():
                if of.get("value") is not None:
                    yield _NOT_ALLOWED.sub("_", f"{kind}/{task}/{metric}"), float(of["value"])
        return
    names = STEP_NUMBERS if kind == "train" else ("lm_loss", "guided_attention")
    for name in names:
        value = record.get(name)
        if value is not None:
            yield f"{kind}/{name}", float(value)
        elif name in _LOSSES and name in record:
            yield f"{kind}/{name}", math.nan
