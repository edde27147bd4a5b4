"""nanoGPT's `.bin`: the ids of all documents one after another, as uint16 without a header.

Files of llm.c and modded-nanoGPT have a header of 256 int32 before the ids, and documents that begin with the
end-of-text id instead of ending with it; they are recognised when read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gaguide.data.exchange.format import ReadOptions, WriteOptions, existing_files, split_at, unreadable
from gaguide.data.format.shards import Document
from gaguide.errors import UserError
from gaguide.files import replacing

NAMES = {"train": "train.bin", "validation": "val.bin"}
"""nanoGPT's names of the two splits."""
_MAGIC, _HEADER_INTS = 20240520, 256
_CHUNK = 1 << 22


def find(name: str) -> list[Path]:
    """The files that a name means."""
    return existing_files(name, ".bin")


def read(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    """The documents of the files, split at the separator; raises a `UserError` for a truncated file."""
    for path in paths:
        dtype = np.dtype(options.dtype or ("uint16" if options.vocab_size <= 2**16 else "uint32"))
        head = np.fromfile(path, "<i4", 3)
        has_header = len(head) == 3 and head[0] == _MAGIC
        offset = 4 * _HEADER_INTS if has_header else 0
        size = path.stat().st_size - offset
        if size % dtype.itemsize or (has_header and size != int(head[2]) * dtype.itemsize):
            raise UserError(unreadable(path, f"its size is not that of whole {dtype} ids: it is truncated"))
        if not size:
            continue
        ids = np.memmap(path, dtype.newbyteorder("<"), "r", offset)
        pieces = (ids[at : at + _CHUNK] for at in range(0, len(ids), _CHUNK))
        yield from map(Document, split_at(pieces, options.separator, at_start=has_header))


def write(folder: Path, split: str, documents: Iterable[Document], options: WriteOptions) -> None:
    """Write a split as `train.bin` or `val.bin`; a `UserError` for ids that do not fit uint16."""
    if options.dtype != np.uint16:
        problem = f"has {options.vocab_size:,} ids, and nanoGPT reads uint16"
        raise UserError.of("--to", problem, "choose another format", "nanogpt")
    with replacing(folder / NAMES[split]) as temporary, temporary.open("wb") as file:
        for document in documents:
            document.ids.astype("<u2", copy=False).tofile(file)
