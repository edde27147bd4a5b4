"""Identity of the content of a source's files, so that a changed file is never taken for the old one.

A file of this machine is identified by the SHA-256 of its bytes, or, in a source of more than a gigabyte, by
its size, its modification time and the SHA-256 of samples of it. A file at an address is identified by its
store's record of the content (ETag, checksum, generation, time), or else by samples.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from gaguide.data.build.kinds import SourceFile
from gaguide.errors import UserError
from gaguide.files import hash_file, hash_parts
from gaguide.log import SlowWork, is_first_process

WHOLE_BYTES = 1_000_000_000
"""Sources of at most this size are hashed as a whole."""
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
# Stores' records of a file's content, by the names that their fsspec packages use.
_REMOTE_KEYS = (
    "ETag", "etag", "Content-MD5", "content_md5", "Digest", "md5Hash", "crc32c", "blob_id", "lfs", "xet_hash",
    "VersionId", "version_id", "generation", "Last-Modified", "LastModified", "last_modified", "mtime",
    "modified", "updated",
)  # fmt: skip


def identify_local(files: list[SourceFile]) -> list[SourceFile]:
    """The files of this machine with their `content`; `UserError` if one cannot be read."""
    whole = sum(file.bytes for file in files if not file.is_remote) <= WHOLE_BYTES
    identified = []
    with SlowWork("hashing the files of the source", len(files), is_first_process()) as work:
        for file in files:
            known = file.is_remote or bool(file.content)
            identified.append(file if known else replace(file, content=_content(Path(file.url), whole)))
            work.done(len(identified))
    return identified


def _content(path: Path, whole: bool) -> str:
    try:
        if whole:
            return f"sha256 {hash_file(path)}"
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            return f"samples {_sampled(file, stat.st_size)} mtime {stat.st_mtime_ns}"
    except OSError as error:
        remedy = "make it readable, or omit it"
        raise UserError.of("--source", f"cannot be read ({error.strerror})", remedy, str(path)) from None


def _sampled(file: IO[bytes], size: int) -> str:
    last = max(0, size - _SAMPLE_BYTES)
    offsets = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)] if last else [0]
    return hash_parts(file, ((offset, _SAMPLE_BYTES) for offset in offsets), str(size).encode())


def identify_remote(filesystem: Any, path: str, info: dict[str, Any]) -> str:
    """`content` of a file at an address, from its store's record (`info`)."""
    stated = {key: str(info[key]) for key in _REMOTE_KEYS if info.get(key)}
    if stated:
        return " ".join(f"{key} {value}" for key, value in sorted(stated.items()))
    with filesystem.open(path, "rb") as file:
        size = int(info.get("size") or 0)
        if getattr(file, "seekable", lambda: False)():
            return f"samples {_sampled(file, size)}"
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def describe_identity(files: tuple[SourceFile, ...]) -> str:
    """How these files are identified, for the manifest."""
    kinds = {file.content.partition(" ")[0] for file in files}
    if kinds <= {"sha256", ""}:
        return "SHA-256 of the whole content"
    if kinds <= {"sha256", "samples", ""}:
        return "size, modification time and SHA-256 of samples, because the source is large"
    return "the store's record of each file (ETag, checksum, time)"


def source_digest(files: tuple[SourceFile, ...]) -> str:
    """SHA-256 over names, sizes and contents of the files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.bytes}\0{file.content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def stamp(file: SourceFile) -> tuple[int, int]:
    """Size and modification time of a file of this machine, to see whether it changes during a build."""
    stat = Path(file.url).stat()
    return stat.st_size, stat.st_mtime_ns
