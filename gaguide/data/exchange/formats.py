"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gaguide.data.exchange import mds, megatron, nanogpt, parquet
from gaguide.data.exchange.format import ReadOptions, WriteOptions
from gaguide.data.format.shards import Document
from gaguide.errors import UserError, suggestion


@dataclass(frozen=True)
class Format:
    """One format of tokenised corpora."""

    name: str
    """Its name after `--from` and `--to`."""
    find: Callable[[str], list[Path]]
    """The files that a name means; `UserError` if there is none."""
    read: Callable[[list[Path], ReadOptions], Iterator[Document]]
    """The documents of files."""
    write: Callable[[Path, str, Iterable[Document], WriteOptions], None]
    """Write the documents of a split into a folder."""
    has_boundaries: bool = True
    """Whether it says where documents end; otherwise they are split at the separator."""
    has_columns: bool = False
    """Whether the ids are in a column, which has a name and whose rows may be blocks of a stream."""
    marks_of: Callable[[list[Path]], tuple[str, ...]] | None = None
    """The marks that files have; None for a format without room for them."""


FORMATS = {
    each.name: each
    for each in (
        Format("nanogpt", nanogpt.find, nanogpt.read, nanogpt.write, has_boundaries=False),
        Format("megatron", megatron.find, megatron.read, megatron.write),
        Format("mds", mds.find, mds.read, mds.write, has_columns=True),
        Format(
            "parquet", parquet.find, parquet.read, parquet.write, has_columns=True, marks_of=parquet.marks_of
        ),
    )
}


def find_format(name: str, option: str) -> Format:
    """The format called `name`; `UserError` under `option` for any other name."""
    if name not in FORMATS:
        raise UserError.of(option, "unknown format", suggestion(name, FORMATS), name)
    return FORMATS[name]
