"""Common parts of all formats of tokenised corpora: options of reading and writing, and faults."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.errors import Fault, UserError, suggestion


@dataclass(frozen=True)
class ReadOptions:
    """How files are read as documents."""

    separator: int
    """Id that ends every document, where a format does not say where documents end."""
    vocab_size: int
    """Number of ids of the tokenizer."""
    column: str | None = None
    """Column of the ids, in formats that have columns; None is the usual one."""
    dtype: str | None = None
    """dtype of the ids, in files that do not store it."""
    joined: bool = False
    """Whether rows are pieces of one stream, such as blocks, instead of documents."""
    marks: tuple[str, ...] = ()
    """Names of the marks that the files have."""


@dataclass(frozen=True)
class WriteOptions:
    """Properties of the documents to write."""

    dtype: np.dtype[Any]
    """dtype of the ids."""
    vocab_size: int
    """Number of ids of the tokenizer."""
    marks: tuple[str, ...] = ()
    """Names of the marks."""


_HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|dev|eval|test)(?![a-z])", re.IGNORECASE)
"""In the names of files that are not to be trained on: val.bin, fineweb_val_000000.bin."""


def existing_files(name: str, ending: str) -> list[Path]:
    """The file, the folder's files of this ending, or the glob's, by name.

    Raises a `UserError` if there is none, and where a folder or glob has both files that are named as
    held-out ones and others: they would be trained on.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(path.glob(f"*{ending}"))
    elif path.is_file():
        found = [path]
    else:
        found = [Path(each) for each in sorted(glob.glob(str(path)))]  # noqa: PTH207 (absolute patterns too)
    if not found:
        problem = "is an address" if "://" in name else f"there is no such {ending} file"
        remedy = "give files of this machine, a folder of them or a quoted glob"
        raise UserError.of("FILES", problem, remedy, name)
    held_out = [each.name for each in found if _HELD_OUT.search(each.stem)]
    if 0 < len(held_out) < len(found):
        problem = f"has files that are named as held-out ones next to others ({held_out[0]})"
        remedy = "name the files: those to train on, and the held-out ones after --validation"
        raise UserError.of("FILES", problem, remedy, name)
    return found


def unreadable(path: Path, problem: str) -> Fault:
    """The fault of a file that is not what its name says."""
    return Fault("FILES", f"cannot be read ({problem})", "copy or write the file again", str(path))


def no_column(column: str, names: Sequence[str] | Iterable[str], path: Path) -> UserError:
    """The error for a file that lacks the column of ids."""
    remedy = f"name the column of the ids: {suggestion(column, list(names))}"
    return UserError.of("--column", f"is not a column of {path}", remedy, column)


def split_at(pieces: Iterable[np.ndarray], separator: int, at_start: bool = False) -> Iterator[np.ndarray]:
    """The documents of a stream of ids that comes in pieces: each ends with `separator`.

    at_start: each begins with it instead. A remainder without one is a document too.
    """
    open_pieces: list[np.ndarray] = []
    for piece in pieces:
        cuts = np.flatnonzero(piece == separator) + (not at_start)
        start = 0
        for cut in cuts.tolist():
            whole = [*open_pieces, piece[start:cut]]
            if any(map(len, whole)):
                yield whole[0] if len(whole) == 1 else np.concatenate(whole)
            open_pieces, start = [], cut
        if start < len(piece):
            open_pieces.append(piece[start:])
    if open_pieces:
        yield np.concatenate(open_pieces)
