"""Identity of the code that made a record: a hash of gaguide's files, and the commit of its checkout."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_KINDS = (".py", ".yaml")


@cache
def code_fingerprint() -> str:
    """SHA-256 of the names and contents of the package's code and settings on disk."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _PACKAGE.rglob("*") if path.suffix in _KINDS):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@cache
def code_commit() -> str | None:
    """The checkout's commit, marked if the package differs from it; None outside a git checkout."""
    head = _git("rev-parse", "HEAD")
    if head is None or _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    changed = _git("status", "--porcelain", "--", str(_PACKAGE))
    return f"{head} (changed)" if changed else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
