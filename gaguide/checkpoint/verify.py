"""Hashes of a checkpoint's files: written into its manifest, compared before anything in it is read.

DeepSpeed's state is pickled, so nothing is loaded from a folder whose hashes do not hold.
"""

from __future__ import annotations

from pathlib import Path

from gaguide.files import hash_file

MANIFEST = "manifest.json"


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
