"""Encode one part of a source as pieces: the work of a worker process.

A part that was interrupted continues after its last complete piece. The content of a piece does not depend on
which process made it, or when.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.data.build.documents import read_span
from gaguide.data.build.encode_row import RowEncoder, row_bytes
from gaguide.data.build.parts import Part
from gaguide.data.format.manifest import TRAIN, VALIDATION, ShardInfo
from gaguide.data.format.pieces import Piece, piece_file, read_pieces, write_record
from gaguide.data.format.shards import Document, write_documents

_REPORT_BYTES = 1 << 20

Report = Callable[[int, int], None]
"""Called with the number of documents and bytes of text processed since the last call."""


@dataclass(frozen=True)
class EncodingSpec:
    """How rows become pieces: the same for all parts of a build."""

    folder: Path
    """The build's own folder, for the pieces."""
    rows: RowEncoder
    """Rows to documents."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer."""
    validation_fraction: float
    """Share of the documents that is held out."""

    def write(self, path: Path, documents: Sequence[Document]) -> ShardInfo:
        """Atomically write documents as a shard, with their marks if the build has any."""
        dtype, has_marks = np.dtype(self.rows.token_dtype), bool(self.rows.marks)
        return write_documents(path, documents, dtype, self.tokenizer_fingerprint, has_marks)


def is_held_out(text: bytes, fraction: float) -> bool:
    """Whether a document belongs to the validation split: decided by a hash of its text, not its position."""
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return number < fraction * 2**64


def encode_part(part: Part, spec: EncodingSpec, report: Report) -> None:
    """Write the pieces of `part` that do not exist yet."""
    done = read_pieces(spec.folder, part.index)
    if done and done[-1].last:
        return
    rows = done[-1].rows if done else 0
    at = _Position(len(done), rows, done[-1].bytes if done else 0)
    current = _OpenPiece()
    reported_rows, reported_bytes = at.rows, at.bytes
    whole = itertools.chain.from_iterable(read_span(span, spec.rows.fields) for span in part.spans)
    for row in itertools.islice(whole, at.rows, None):
        document, found = spec.rows.encode(row)
        if isinstance(document, Document):
            split = VALIDATION if is_held_out(row_bytes(row), spec.validation_fraction) else TRAIN
            if split == TRAIN and current.tokens and current.tokens + len(document.ids) > part.limit_tokens:
                _write_piece(part, spec, at, current, last=False)
                at, current = _Position(at.number + 1, at.rows, at.bytes), _OpenPiece()
            current.add(split, document)
        else:
            current.dropped[document.value] += 1
        if found is not None:
            identity = hashlib.sha256(row_bytes(row)).hexdigest()
            current.contaminated.append({"sha256": identity, **found.as_record()})
        at.rows += 1
        at.bytes += len(row_bytes(row))
        if at.bytes - reported_bytes > _REPORT_BYTES:
            report(at.rows - reported_rows, at.bytes - reported_bytes)
            reported_rows, reported_bytes = at.rows, at.bytes
    _write_piece(part, spec, at, current, last=True)
    report(at.rows - reported_rows, at.bytes - reported_bytes)


@dataclass
class _Position:
    """How far a part has been read."""

    number: int
    """Index of the current piece."""
    rows: int
    """Rows read."""
    bytes: int
    """Bytes of text read."""


@dataclass
class _OpenPiece:
    """The piece that is being filled."""

    documents: dict[str, list[Document]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    """Documents of each split."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of rows that gave no document, by reason."""
    contaminated: list[dict[str, Any]] = field(default_factory=list)
    """The documents that contain evaluation examples."""
    tokens: int = 0
    """Number of ids of the training documents."""

    def add(self, split: str, document: Document) -> None:
        self.documents[split].append(document)
        self.tokens += len(document.ids) if split == TRAIN else 0


def _write_piece(part: Part, spec: EncodingSpec, at: _Position, current: _OpenPiece, last: bool) -> None:
    shards = {}
    for split, documents in current.documents.items():
        if documents:
            path = spec.folder / piece_file(part.index, at.number, split)
            shards[split] = spec.write(path, documents)
    dropped = dict(sorted(current.dropped.items()))
    write_record(
        spec.folder,
        Piece(part.index, at.number, at.rows, at.bytes, last, dropped, shards, current.contaminated),
    )
