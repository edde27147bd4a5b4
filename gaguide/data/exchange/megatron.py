"""Megatron's indexed data sets: ids in PREFIX.bin, lengths and document boundaries in PREFIX.idx.

The index: `MMIDIDX\\0\\0`, version 1 (uint64), code of the dtype (uint8), number of sequences and of document
ends (uint64 each), then the sequences' lengths (int32) and byte offsets (int64), and the number of the first
sequence of each document, and the number of all (int64); all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gaguide.data.exchange.format import ReadOptions, WriteOptions, existing_files, unreadable
from gaguide.data.format.shards import Document
from gaguide.errors import UserError
from gaguide.files import replacing

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CODES = {"uint16": 8, "int32": 4}
_LARGEST_UINT16_VOCABULARY = 65_499
"""Megatron's own choice of the dtype: int32 from 65,500 ids on."""
_HEAD = struct.Struct("<QBQQ")


def find(name: str) -> list[Path]:
    """The two files of a prefix, which may be written with either ending."""
    bare = name.removesuffix(".bin").removesuffix(".idx")
    return [*existing_files(f"{bare}.idx", ".idx"), *existing_files(f"{bare}.bin", ".bin")]


def read(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    """The documents; sequences of one document are joined."""
    for index, content in zip(paths[::2], paths[1::2]):
        yield from _read(index, content)


def _read(index: Path, content: Path) -> Iterator[Document]:
    with index.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(unreadable(index, "it is not the index of a Megatron data set"))
        raw = file.read(_HEAD.size)
        if len(raw) < _HEAD.size:
            raise UserError(unreadable(index, "it is truncated"))
        version, code, sequences, ends = _HEAD.unpack(raw)
        if version != 1 or code not in _DTYPES:
            problem = f"its version is {version} and its dtype {code}, where 1 and an integer are known"
            raise UserError(unreadable(index, problem))
        lengths = np.fromfile(file, "<i4", sequences)
        offsets = np.fromfile(file, "<i8", sequences)
        first = np.fromfile(file, "<i8", ends)
    dtype = np.dtype(_DTYPES[code])
    size = content.stat().st_size // dtype.itemsize
    ids = np.memmap(content, dtype, "r") if size else np.empty(0, dtype)
    starts = offsets // dtype.itemsize
    if len(first) != ends or (sequences and (starts + lengths).max() > size):
        raise UserError(unreadable(content, "it ends before its index does: it is truncated"))
    whole = not ends or (first[0] == 0 and first[-1] == sequences and (np.diff(first) >= 0).all())
    if not whole or (lengths < 0).any() or (offsets < 0).any() or (offsets % dtype.itemsize).any():
        raise UserError(unreadable(index, "its lengths, offsets or documents are not those of a whole file"))
    for begin, end in zip(first.tolist(), first[1:].tolist()):
        parts = [ids[starts[at] : starts[at] + lengths[at]] for at in range(begin, end)]
        yield Document(parts[0] if len(parts) == 1 else np.concatenate([ids[:0], *parts]))


def write(folder: Path, split: str, documents: Iterable[Document], options: WriteOptions) -> None:
    """Write a split as SPLIT.bin and SPLIT.idx, byte for byte as Megatron's builder: a sequence each."""
    kind = "uint16" if options.vocab_size <= _LARGEST_UINT16_VOCABULARY else "int32"
    dtype = np.dtype(kind).newbyteorder("<")
    lengths: list[int] = []
    with replacing(folder / f"{split}.bin") as temporary, temporary.open("wb") as file:
        for document in documents:
            document.ids.astype(dtype, copy=False).tofile(file)
            lengths.append(len(document.ids))
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    with replacing(folder / f"{split}.idx") as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + _HEAD.pack(1, _CODES[kind], len(lengths), len(lengths) + 1))
        file.write(np.array(lengths, "<i4").tobytes())
        file.write((ends[:-1] * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
