"""Whole-or-nothing writes, durable renames, file hashes.

`replacing` and the `write_*` functions write under a temporary name in the target's folder, fsync, then
rename: a reader, or a crash, sees the old file, no file, or the whole new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends normally it is synced and replaces `path`.

    After a kill the temporary file stays behind; its name starts with ".tmp-" and nothing reads it.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically; NaN and infinity become null."""
    write_text(path, json.dumps(without_nonfinite(value), indent=2, ensure_ascii=False) + "\n")


def without_nonfinite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, since JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(item) for item in value]
    return value


def hash_file(path: Path, flush: bool = False) -> str:
    """Hexadecimal SHA-256 of a file's bytes; `flush` fsyncs it first, as far as this host wrote it."""
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that names created or renamed in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path) -> None:
    """`sync_folder` for `folder` and every folder below it."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
