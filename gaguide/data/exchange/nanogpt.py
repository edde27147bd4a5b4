"""nanoGPT's `.bin`: the ids of all documents one after another, as uint16 without a header.

Files of llm.c and modded-nanoGPT have a header of 256 int32 before the ids, which says their dtype, and
documents that begin with the end-of-text id instead of ending with it; they are recognised when read.
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
_MAGICS, _HEADER_INTS = {20240520: "uint16", 20240801: "uint32"}, 256
_CHUNK = 1 << 22


def find(name: str) -> list[Path]:
    """The files that a name means."""
    return existing_files(name, ".bin")


def read(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    """The documents of the files, split at the separator; raises a `UserError` for a truncated file."""
    for path in paths:
        head = np.fromfile(path, "<i4", 3)
        stated = _MAGICS.get(int(head[0])) if len(head) == 3 else None
        has_header = stated is not None
        dtype = np.dtype(stated or options.dtype or ("uint16" if options.vocab_size <= 2**16 else "uint32"))
        offset = 4 * _HEADER_INTS if has_header else 0
        size = path.stat().st_size - offset
        if size % dtype.itemsize or (has_header and size != int(head[2]) * dtype.itemsize):
            raise UserError(unreadable(path, f"its size is not that of whole {dtype} ids: it is truncated"))
        if not size:
            continue
        ids = np.memmap(path, dtype.newbyteorder("<"), "r", offset)
        if not (options.dtype or has_header) and _looks_wider(ids[:_CHUNK]):
            problem = "every second id is 0, as where ids have 32 or 64 bits and are read as uint16"
            remedy = "say how they are stored: --dtype uint32 or int64 (or uint16, if it is right)"
            raise UserError.of("--dtype", problem, remedy, str(path))
        pieces = (ids[at : at + _CHUNK] for at in range(0, len(ids), _CHUNK))
        yield from map(Document, split_at(pieces, options.separator, at_start=has_header))


def _looks_wider(ids: np.ndarray) -> bool:
    """Whether these 16-bit ids are more likely the halves of wider ones."""
    return ids.dtype.itemsize == 2 and len(ids) >= 64 and bool(ids.any()) and not ids[1::2].any()


def write(folder: Path, split: str, documents: Iterable[Document], options: WriteOptions) -> None:
    """Write a split as `train.bin` or `val.bin`; a `UserError` for ids that do not fit uint16."""
    if options.dtype != np.uint16:
        problem = f"has {options.vocab_size:,} ids, and nanoGPT reads uint16"
        raise UserError.of("--to", problem, "choose another format", "nanogpt")
    with replacing(folder / NAMES[split]) as temporary, temporary.open("wb") as file:
        for document in documents:
            document.ids.astype("<u2", copy=False).tofile(file)
