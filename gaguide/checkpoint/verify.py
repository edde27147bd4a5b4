"""Hashes of a checkpoint's files: written into its manifest, compared before anything in it is read.

DeepSpeed's state is pickled, so nothing is loaded from a folder whose hashes do not hold.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MANIFEST = "manifest.json"


def hash_files(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every file below `folder` except its manifest; each is flushed to disk."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
    return hashes


def verify_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """What is wrong with the files, in words; empty where all is well."""
    problems = []
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                problems.append(f"{name} is damaged")
    return problems


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
