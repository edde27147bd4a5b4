"""Scores saved by each rank batch by batch, and read after an interruption.

One line per finished batch, in a folder named by a fingerprint of everything that the scores depend on. The
number of ranks is not part of it, since batches are formed without regard to ranks: another number can
resume.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gaguide.distributed import World, all_gather, broadcast
from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.scorer import Sharing
from gaguide.log import read_metrics

FOLDER = ".unfinished"
"""Folder in the output folder, until the results are written."""


def fingerprint(conditions: Mapping[str, Any], batches: Sequence[Batch]) -> str:
    """SHA-256 of model and settings (`conditions`, plain JSON) and of every token of `batches`."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode())
    for batch in batches:
        digest.update(array("q", [len(batch.prefix), *batch.prefix, len(batch.rows)]).tobytes())
        for row in batch.rows:
            digest.update(array("q", [len(row), len(row.readouts), *row.token_ids, *row.depths]).tobytes())
            for readout in row.readouts:
                values = [*readout.key, readout.greedy, *readout.positions, *readout.target_ids]
                digest.update(array("q", values).tobytes())
    return digest.hexdigest()


class SavedScores:
    """The scores of finished batches by batch number, the same on every rank.

    output: folder of the results; None saves nothing. name: fingerprint of the evaluation.
    """

    def __init__(self, output: Path | None, name: str, batches: Sequence[Batch], world: World) -> None:
        self.scores: dict[int, Scores] = {}
        self.sharing: Sharing | None = None
        """Sharing that the first launch detected; None where nothing was saved."""
        self._folder = None if output is None else _saved_folder(output, name)
        self._rank = world.rank
        self._file: TextIO | None = None
        # One rank of each host reads: the folder may be on the hosts' own disks.
        found = _read(self._folder, batches) if self._folder is not None and world.local_rank == 0 else {}
        for sharing, scores in (entry for part in all_gather(found) for entry in part.values()):
            self.sharing = sharing if self.sharing is None else self.sharing
            if sharing == self.sharing:
                self.scores |= scores
        self.sharing = broadcast(self.sharing)

    def save(self, at: int, scores: Scores, sharing: Sharing) -> None:
        """Write the scores of batch `at`; once this returns they outlive the process."""
        if self._folder is None:
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"rank-{self._rank}-{time.time_ns()}.jsonl"
            self._file = path.open("x", encoding="utf-8")
            self._file.write(json.dumps({"shares": sharing}) + "\n")
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


def remove_saved_scores(finished: Iterable[tuple[Path, str]]) -> None:
    """Remove the saved scores of these (output folder, fingerprint), once their results are written.

    Scores of other, unfinished evaluations in the same folders stay.
    """
    for output, name in finished:
        shutil.rmtree(_saved_folder(output, name), ignore_errors=True)
        with suppress(OSError):  # another evaluation's scores are in it
            (output / FOLDER).rmdir()


def _saved_folder(output: Path, name: str) -> Path:
    return output / FOLDER / name[:16]


def _read(folder: Path, batches: Sequence[Batch]) -> dict[str, tuple[Sharing, dict[int, Scores]]]:
    """(sharing, scores by batch) of every file; batches whose line is damaged are scored again."""
    found: dict[str, tuple[Sharing, dict[int, Scores]]] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        sharing, scores = None, {}
        for record in read_metrics(path):
            if "shares" in record:
                sharing = Sharing(record["shares"])
            else:
                scores[int(record["batch"])] = {
                    (example, pair): value for example, pair, value in record["scores"]
                }
        if sharing is not None:
            found[path.name] = (
                sharing,
                {at: values for at, values in scores.items() if values.keys() == _keys(batches[at])},
            )
    return found


def _keys(batch: Batch) -> set[tuple[int, int]]:
    return {readout.key for row in batch.rows for readout in row.readouts}
