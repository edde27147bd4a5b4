"""Verification of a checkpoint: the hashes in its manifest, compared before any of its files is read.

DeepSpeed's state is pickled, so nothing is loaded from a folder whose hashes differ.
"""

from __future__ import annotations

from pathlib import Path

from gaguide.files import hash_file

MANIFEST = "manifest.json"
"""The file in a checkpoint's folder that describes it."""


def verify_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """The problems of a checkpoint's files, in words; empty if there are none.

    `hashes` has the SHA-256 of each file by relative path. A file that it lacks is a problem if DeepSpeed
    would read it.
    """
    problems = []
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif hash_file(path) != expected:
            problems.append(f"{name} is damaged")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.pt")}
    return problems + [f"{name} does not belong to this checkpoint" for name in sorted(found - hashes.keys())]
