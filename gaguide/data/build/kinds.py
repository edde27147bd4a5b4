"""Kinds of source files, and how the name of a file determines its kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

# In order of preference where a folder contains several kinds, such as a data set and a README.txt.
KINDS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "arrow": (".arrow", ".feather"),
    "csv": (".csv", ".tsv"),
    "tar": (".tar", ".tgz", "_data.xz"),
    "zip": (".zip",),
    "text": (".txt", ".text"),
}
KNOWN = "Parquet, JSONL and JSON arrays, Arrow, CSV, text (.txt, one document a file), tar and zip archives"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_COMPRESSIBLE = ("jsonl", "csv", "text", "tar")
_TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".incomplete", ".lock")

HIDDEN = "hidden or temporary"
"""Why a file of a folder or an archive is left out: see `is_hidden`."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    url: str
    """Local path or fsspec address."""
    name: str
    """Name that identifies the file within the source, wherever that is."""
    kind: str
    """One of `KINDS`, or "embedded"."""
    compression: str | None
    """"gzip", "zstd", "bz2", "xz", or None."""
    bytes: int
    """Size as stored."""
    is_remote: bool = False
    """Whether `url` is an address; a local path may look like one."""
    content: str = ""
    """Identifies the content of the file: see `identity`."""


def kind_of(name: str) -> str | None:
    """Kind of a file by the ending of its name; None if that is unknown."""
    lower = name.lower()
    if lower.endswith(KINDS["tar"]):
        return "tar"
    compressed = compression_of(name) is not None
    bare = lower[: -len(PurePosixPath(lower).suffix)] if compressed else lower
    for kind, endings in KINDS.items():
        if bare.endswith(endings) and (not compressed or kind in _COMPRESSIBLE):
            return kind
    return None


def stored_compression(name: str, kind: str) -> str | None:
    """Compression that a reader of the file has to undo; tarfile detects all but one on its own."""
    found = compression_of(name)
    return found if kind != "tar" or found == "zstd" else None


def compression_of(name: str) -> str | None:
    """Compression of a file by the ending of its name."""
    lower = name.lower()
    if lower.endswith(".tgz"):
        return "gzip"
    return _COMPRESSIONS.get(PurePosixPath(lower).suffix)


def is_hidden(path: str) -> bool:
    """Whether a relative path is hidden, a resource fork, or the temporary file of another program."""
    parts = PurePosixPath(path).parts
    name = parts[-1] if parts else ""
    return (
        any(part.startswith(".") and part not in (".", "..") for part in parts)
        or "__MACOSX" in parts
        or name.lower().endswith(_TEMPORARY)
        or name.startswith(("~$", "#"))
    )
