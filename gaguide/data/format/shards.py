"""One shard: an Arrow IPC file with one row per document, in a single record batch.

The column `tokens` is `list<uint16>` or `list<uint32>`. Since there is one batch, its values are one flat
array, which is memory-mapped and sliced into blocks of any length without a copy; its offsets are the
document boundaries. Where tokens have marks, a second column `marks` (`list<uint8>`) has the same offsets.
pyarrow and `datasets` read the file without gaguide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gaguide.data.format.manifest import ShardInfo
from gaguide.errors import Fault, first_line
from gaguide.files import hash_file, replacing

COLUMN, MARKS_COLUMN = "tokens", "marks"
_TOKENIZER_KEY = b"gaguide.tokenizer"


@dataclass(frozen=True)
class Document:
    """One document as it is stored."""

    ids: np.ndarray
    """Token ids [n], with those at its start and end."""
    marks: np.ndarray | None = None
    """Marks of each token [n] uint8, bit k for the k-th mark; None where a folder has none."""


@dataclass(frozen=True)
class Shard:
    """An open shard."""

    tokens: np.ndarray
    """Ids [n] uint16 or uint32, memory-mapped."""
    offsets: np.ndarray
    """[documents + 1] int32: where each document begins, and the end."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer that made the ids."""
    marks: np.ndarray | None = None
    """Marks [n] uint8, one bit each, memory-mapped; None where tokens have none."""
    lease: Any = None
    """Keeps a file in a cache from being evicted while this object lives."""

    def documents(self) -> Iterator[Document]:
        """Its documents, as views of the memory map."""
        for start, end in pairwise(self.offsets.tolist()):
            marks = None if self.marks is None else self.marks[start:end]
            yield Document(self.tokens[start:end], marks)


class DamagedShardError(Exception):
    """A file is not the shard that the manifest describes.

    The message begins with the kind of damage: missing, truncated, damaged or foreign.
    """


def shard_name(split: str, index: int) -> str:
    """File name of the shard of a split."""
    return f"{split}-{index:05d}.arrow"


def write_shard(
    path: Path,
    documents: Sequence[np.ndarray],
    dtype: np.dtype[Any],
    tokenizer_fingerprint: str,
    marks: Sequence[np.ndarray] | None = None,
) -> ShardInfo:
    """Atomically write documents (1-D id arrays, at least one) as a shard; equal input gives equal bytes.

    marks: one uint8 array for each document, of its length.
    """
    lengths = np.fromiter((len(document) for document in documents), np.int64, len(documents))
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise ValueError(f"{offsets[-1]} tokens do not fit in one Arrow list array")
    # Directly into the narrow dtype, which avoids a second, wide copy of the whole shard.
    values = np.empty(int(offsets[-1]), dtype)
    np.concatenate(documents, out=values, casting="unsafe")
    arrow_offsets = pa.array(offsets.astype(np.int32))
    columns = {COLUMN: pa.ListArray.from_arrays(arrow_offsets, pa.array(values))}
    marked = None if marks is None else np.concatenate(marks).astype(np.uint8, copy=False)
    if marked is not None:
        assert len(marked) == len(values)
        columns[MARKS_COLUMN] = pa.ListArray.from_arrays(arrow_offsets, pa.array(marked))
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in columns.items()],
        metadata={_TOKENIZER_KEY: tokenizer_fingerprint.encode()},
    )
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
        digest, size = hash_file(temporary), temporary.stat().st_size
    content = content_digest(values, offsets, marked)
    return ShardInfo(path.name, len(documents), len(values), digest, content, bytes=size)


def write_documents(
    path: Path, documents: Sequence[Document], dtype: np.dtype[Any], fingerprint: str, has_marks: bool
) -> ShardInfo:
    """`write_shard` with the documents' marks, if they have any."""
    marks = [document.marks for document in documents if document.marks is not None]
    ids = [document.ids for document in documents]
    return write_shard(path, ids, dtype, fingerprint, marks if has_marks else None)


def content_digest(tokens: np.ndarray, offsets: np.ndarray, marks: np.ndarray | None = None) -> str:
    """SHA-256 of offsets as int64, ids as uint32 and marks: independent of Arrow's version."""
    digest = hashlib.sha256(offsets.astype("<i8").tobytes())
    for start in range(0, len(tokens), 1 << 20):
        digest.update(tokens[start : start + (1 << 20)].astype("<u4").tobytes())
    if marks is not None:
        digest.update(b"marks")
        digest.update(marks.tobytes())
    return digest.hexdigest()


def open_shard(path: Path, info: ShardInfo, tokenizer_fingerprint: str) -> Shard:
    """Memory-map a shard; `DamagedShardError` if it is not the one that `info` describes.

    Compares size, counts, document boundaries and tokenizer, which costs next to nothing. Checksums are
    compared by `verify`, and in the background during training.
    """
    check_size(path, info)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = reader.num_record_batches
        batch = reader.get_batch(0) if batches == 1 else None
        column = None if batch is None else batch.column(COLUMN)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise DamagedShardError(f"damaged: not a readable Arrow file ({first_line(error)})") from None
    if column is None or not pa.types.is_list(column.type):
        raise DamagedShardError("foreign: not in the format of a gaguide shard")
    offsets = column.offsets.to_numpy(zero_copy_only=True)
    tokens = column.values.to_numpy(zero_copy_only=True)
    if (len(column), len(tokens)) != (info.documents, info.tokens):
        raise DamagedShardError(
            f"foreign: it holds {len(column)} documents and {len(tokens)} tokens, "
            f"the manifest says {info.documents} and {info.tokens}"
        )
    if len(offsets) and (offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 1).any()):
        raise DamagedShardError("damaged: its document boundaries are impossible")
    fingerprint = (reader.schema.metadata or {}).get(_TOKENIZER_KEY, b"").decode(errors="replace")
    if fingerprint != tokenizer_fingerprint:
        raise DamagedShardError("foreign: it was made with another tokenizer")
    return Shard(tokens, offsets, fingerprint, _marks(batch, column))


def _marks(batch: pa.RecordBatch, tokens: pa.ListArray) -> np.ndarray | None:
    if MARKS_COLUMN not in batch.schema.names:
        return None
    marks = batch.column(MARKS_COLUMN)
    if marks.type != pa.list_(pa.uint8()) or not marks.offsets.equals(tokens.offsets):
        raise DamagedShardError("damaged: its marks are not one for each token")
    return marks.values.to_numpy(zero_copy_only=True)


def check_size(path: Path, info: ShardInfo) -> None:
    """Compare a shard's presence and size with the manifest; `DamagedShardError` if they differ."""
    if not path.is_file():
        raise DamagedShardError("missing")
    size = path.stat().st_size
    if size != info.bytes:
        kind = "truncated" if size < info.bytes else "damaged"
        raise DamagedShardError(f"{kind}: it has {size} bytes, the manifest says {info.bytes}")


def shard_fault(folder: str, file: str, problem: str) -> Fault:
    """The fault of a shard that is not what the manifest says."""
    remedy = f"see `gaguide data verify {folder}`; copy the file again, or rebuild the folder"
    return Fault("data", f"shard {folder}/{file} is {problem}", remedy)
