"""Hashes of a checkpoint's files: written into its manifest, compared before anything in it is read.

DeepSpeed's state is pickled, so nothing is loaded from a folder whose hashes do not hold.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MANIFEST = "manifest.json"


def hash_file(path: Path, flush: bool = False) -> str:
    """sha256 of a file; `flush` brings it to disk first, as far as this host wrote it."""
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """What is wrong with the files, in words; empty where all is well.

    A file that a manifest does not list is a fault where DeepSpeed would read it.
    """
    problems = []
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif hash_file(path) != expected:
            problems.append(f"{name} is damaged")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.pt")}
    return problems + [f"{name} is not of this checkpoint" for name in sorted(found - hashes.keys())]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path) -> None:
    """`sync_folder` for it and all folders below."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)


def folder_size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
