"""Turning a part of the source into pieces: what a worker process does.

A piece is one training shard and the held-out documents met while filling it, under temporary names in the
build's own folder, with a record that is written last. A piece exists if its record does; a part that was
interrupted goes on after its last piece. Nothing in a piece depends on which process made it, or when.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gaguide.data.build.documents import Reason, Row, read_span
from gaguide.data.build.parts import Part
from gaguide.data.format.manifest import ShardInfo
from gaguide.data.format.shards import write_shard
from gaguide.data.format.tokenizer import DocumentEncoder
from gaguide.files import write_text

TRAIN, VALIDATION = "train", "validation"
_REPORT_BYTES = 1 << 20

Report = Callable[[int, int], None]
"""Called with the documents and the bytes of text done since the last call."""


@dataclass(frozen=True)
class Job:
    """What the parts of a build share. folder: the build's own; token_dtype: "uint16" or "uint32"."""

    folder: Path
    encoder: DocumentEncoder
    eos_token_id: int
    token_dtype: str
    tokenizer_fingerprint: str
    text_field: str
    validation_fraction: float


@dataclass(frozen=True)
class Piece:
    """The record of one piece. rows, bytes: read of the part up to this piece's end; last: ends the part."""

    part: int
    number: int
    rows: int
    bytes: int
    last: bool
    dropped: dict[str, int]
    shards: dict[str, ShardInfo]

    @property
    def documents(self) -> int:
        """Documents kept in this piece."""
        return sum(shard.documents for shard in self.shards.values())


def held_out(text: bytes, fraction: float) -> bool:
    """Whether a document belongs to the validation split: by a hash of its text, so wherever it stands."""
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return number < fraction * 2**64


def run_part(part: Part, job: Job, report: Report) -> None:
    """Make the pieces of `part` that don't exist yet."""
    done = read_pieces(job.folder, part.index)
    if done and done[-1].last:
        return
    rows = done[-1].rows if done else 0
    at = _Position(len(done), rows, done[-1].bytes if done else 0)
    filling = _Filling()
    reported_rows, reported_bytes = at.rows, at.bytes
    for row in itertools.islice(_part_rows(part, job.text_field), at.rows, None):
        split, ids = _encode(row, job, filling.dropped)
        if ids is not None:
            if split == TRAIN and filling.tokens and filling.tokens + len(ids) > part.limit_tokens:
                _write_piece(part, job, at, filling, last=False)
                at, filling = _Position(at.number + 1, at.rows, at.bytes), _Filling()
            filling.add(split, ids)
        at.rows += 1
        at.bytes += len(row) if isinstance(row, bytes) else 0
        if at.bytes - reported_bytes > _REPORT_BYTES:
            report(at.rows - reported_rows, at.bytes - reported_bytes)
            reported_rows, reported_bytes = at.rows, at.bytes
    _write_piece(part, job, at, filling, last=True)
    report(at.rows - reported_rows, at.bytes - reported_bytes)


@dataclass
class _Position:
    """Where in a part the work stands."""

    number: int
    rows: int
    bytes: int


@dataclass
class _Filling:
    """The piece being filled."""

    documents: dict[str, list[np.ndarray]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def add(self, split: str, ids: np.ndarray) -> None:
        self.documents[split].append(ids)
        self.tokens += len(ids) if split == TRAIN else 0


def _part_rows(part: Part, text_field: str) -> Iterator[Row]:
    for span in part.spans:
        yield from read_span(span, text_field)


def _encode(row: Row, job: Job, dropped: Counter[str]) -> tuple[str, np.ndarray | None]:
    """The document's split and its ids, end-of-text included, in the stored dtype; None where dropped."""
    if isinstance(row, Reason):
        dropped[row.value] += 1
        return TRAIN, None
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError:
        dropped[Reason.INVALID_UTF8.value] += 1
        return TRAIN, None
    encoded = job.encoder.encode(text)
    ids = np.empty(len(encoded) + 1, np.dtype(job.token_dtype))
    ids[:-1] = encoded
    ids[-1] = job.eos_token_id
    return VALIDATION if held_out(row, job.validation_fraction) else TRAIN, ids


def _write_piece(part: Part, job: Job, at: _Position, filling: _Filling, last: bool) -> None:
    shards = {}
    for split, documents in filling.documents.items():
        if documents:
            path = job.folder / _piece_file(part.index, at.number, split)
            shards[split] = write_shard(path, documents, np.dtype(job.token_dtype), job.tokenizer_fingerprint)
    piece = Piece(
        part.index, at.number, at.rows, at.bytes, last, dict(sorted(filling.dropped.items())), shards
    )
    write_text(job.folder / _record_file(part.index, at.number), json.dumps(asdict(piece)))


def read_pieces(folder: Path, part: int) -> list[Piece]:
    """The whole pieces of a part so far, in their order."""
    pieces: list[Piece] = []
    for number in itertools.count():
        path = folder / _record_file(part, number)
        if not path.is_file():
            return pieces
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = {split: ShardInfo(**shard) for split, shard in content.pop("shards").items()}
        pieces.append(Piece(shards=shards, **content))
    return pieces


def _piece_file(part: int, number: int, split: str) -> str:
    return f"part-{part:05d}-{number:03d}.{split}.arrow"


def _record_file(part: int, number: int) -> str:
    return f"part-{part:05d}-{number:03d}.json"
