"""Encode one part of a source as pieces: the work of a worker process.

A part that was interrupted continues after its last complete piece. The content of a piece does not depend on
which process made it, or when.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gaguide.data.build.documents import read_span
from gaguide.data.build.parts import Part
from gaguide.data.build.rows import Reason, Row
from gaguide.data.format.manifest import TRAIN, VALIDATION
from gaguide.data.format.pieces import Piece, piece_file, read_pieces, write_record
from gaguide.data.format.shards import write_shard
from gaguide.data.format.tokenizer import DocumentEncoder, DocumentIds

_REPORT_BYTES = 1 << 20

Report = Callable[[int, int], None]
"""Called with the number of documents and bytes of text processed since the last call."""


@dataclass(frozen=True)
class EncodingSpec:
    """How rows become pieces: the same for all parts of a build."""

    folder: Path
    """The build's own folder, for the pieces."""
    encoder: DocumentEncoder
    """Text to ids."""
    ids: DocumentIds
    """Which ids begin and end every document."""
    token_dtype: str
    """dtype of the stored ids: "uint16" or "uint32"."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer."""
    text_field: str
    """Column or field with the text."""
    validation_fraction: float
    """Share of the documents that is held out."""


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
    for row in itertools.islice(_rows(part, spec.text_field), at.rows, None):
        split, ids = _encode(row, spec, current.dropped)
        if ids is not None:
            if split == TRAIN and current.tokens and current.tokens + len(ids) > part.limit_tokens:
                _write_piece(part, spec, at, current, last=False)
                at, current = _Position(at.number + 1, at.rows, at.bytes), _OpenPiece()
            current.add(split, ids)
        at.rows += 1
        at.bytes += len(row) if isinstance(row, bytes) else 0
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

    documents: dict[str, list[np.ndarray]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    """Ids of the documents of each split."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of rows that gave no document, by reason."""
    tokens: int = 0
    """Number of ids of the training documents."""

    def add(self, split: str, ids: np.ndarray) -> None:
        self.documents[split].append(ids)
        self.tokens += len(ids) if split == TRAIN else 0


def _rows(part: Part, text_field: str) -> Iterator[Row]:
    for span in part.spans:
        yield from read_span(span, text_field)


def _encode(row: Row, spec: EncodingSpec, dropped: Counter[str]) -> tuple[str, np.ndarray | None]:
    """The document's split and its ids as stored, with those at its start and end; None if it is dropped."""
    if isinstance(row, Reason):
        dropped[row.value] += 1
        return TRAIN, None
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError:
        dropped[Reason.INVALID_UTF8.value] += 1
        return TRAIN, None
    encoded = spec.encoder.encode(text)
    before, after = spec.ids.before, spec.ids.after
    ids = np.concatenate([before, encoded, after]).astype(np.dtype(spec.token_dtype))
    return VALIDATION if is_held_out(row, spec.validation_fraction) else TRAIN, ids


def _write_piece(part: Part, spec: EncodingSpec, at: _Position, current: _OpenPiece, last: bool) -> None:
    shards = {}
    for split, documents in current.documents.items():
        if documents:
            path = spec.folder / piece_file(part.index, at.number, split)
            dtype = np.dtype(spec.token_dtype)
            shards[split] = write_shard(path, documents, dtype, spec.tokenizer_fingerprint)
    dropped = dict(sorted(current.dropped.items()))
    write_record(spec.folder, Piece(part.index, at.number, at.rows, at.bytes, last, dropped, shards))
