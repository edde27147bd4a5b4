"""Scores that are already known: written by each rank as it goes, read again after an interruption.

A line for each finished batch, in a folder named by a fingerprint of everything that the scores depend on
but the number of ranks. Batches are formed without regard to ranks, so another number of ranks can go on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gaguide.distributed import World, all_gather, broadcast
from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.scorer import Sharing

FOLDER = ".unfinished"


def fingerprint(conditions: Mapping[str, Any], batches: Sequence[Batch]) -> str:
    """sha256 of model and settings (`conditions`, plain JSON) and of every token of `batches`."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode())
    for batch in batches:
        digest.update(array("q", [len(batch.prefix), *batch.prefix, len(batch.rows)]).tobytes())
        for row in batch.rows:
            digest.update(array("q", [len(row), len(row.reads), *row.token_ids, *row.depths]).tobytes())
            for read in row.reads:
                digest.update(array("q", [*read.key, *read.positions, *read.target_ids]).tobytes())
    return digest.hexdigest()


class Finished:
    """The scores of finished batches by number, on every rank; `shares` as the first launch found it."""

    def __init__(self, output: Path | None, name: str, batches: Sequence[Batch], world: World) -> None:
        self.scores: dict[int, Scores] = {}
        self.shares: Sharing | None = None
        self._folder = None if output is None else output / FOLDER / name[:16]
        self._rank = world.rank
        self._file: TextIO | None = None
        # One rank of each host reads: the folder may lie on the hosts' own disks.
        found = _read(self._folder, batches) if self._folder is not None and world.local_rank == 0 else {}
        for shares, scores in (entry for part in all_gather(found) for entry in part.values()):
            self.shares = shares if self.shares is None else self.shares
            if shares == self.shares:
                self.scores |= scores
        self.shares = broadcast(self.shares)

    def add(self, at: int, scores: Scores, shares: Sharing) -> None:
        """Keep the scores of batch `at`; they outlive this process when this returns."""
        if self._folder is None:
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"rank-{self._rank}-{time.time_ns()}.jsonl"
            self._file = path.open("x", encoding="utf-8")
            self._file.write(json.dumps({"shares": shares}) + "\n")
        values = [[*key, value] for key, value in scores.items()]
        self._file.write(json.dumps({"batch": at, "scores": values}) + "\n")
        self._file.flush()

    def all_scores(self) -> Scores:
        """The scores of all finished batches."""
        return {key: value for scores in self.scores.values() for key, value in scores.items()}

    def close(self) -> None:
        """Close this rank's file."""
        if self._file is not None:
            self._file.close()


def forget(outputs: Iterable[Path]) -> None:
    """Remove what was kept, once the results are written."""
    for output in outputs:
        shutil.rmtree(output / FOLDER, ignore_errors=True)


def _read(folder: Path, batches: Sequence[Batch]) -> dict[str, tuple[Sharing, dict[int, Scores]]]:
    """(shares, scores by batch) of every file; a line cut off by a kill ends its file."""
    found: dict[str, tuple[Sharing, dict[int, Scores]]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        shares, scores = None, {}
        for line in path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if shares is None:
                shares = Sharing(record["shares"])
            else:
                scores[int(record["batch"])] = {
                    (example, pair): value for example, pair, value in record["scores"]
                }
        if shares is not None:
            found[path.name] = (
                shares,
                {at: values for at, values in scores.items() if values.keys() == _keys(batches[at])},
            )
    return found


def _keys(batch: Batch) -> set[tuple[int, int]]:
    return {read.key for row in batch.rows for read in row.reads}
