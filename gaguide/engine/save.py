"""The result of saving a rank's state: its files, or the reason why they could not be written.

Saving under DeepSpeed is a sequence of collectives with file writes in between. A rank that left it by an
exception would keep all others waiting, so a failed write is recorded here and the sequence runs to its end;
the ranks compare their results afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from gaguide.files import hash_file

STATE_TAG = "state"
"""DeepSpeed's tag for its files: the folder of that name inside a checkpoint folder."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class SaveResult:
    """Files that a rank has written, or the disk error."""

    files: list[Path] = field(default_factory=list)
    """The files, complete if there is no `problem`."""
    problem: str | None = None
    """The first disk error, in words; None if there was none."""

    def attempt(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """`write(*args, **kwargs)`, or None if a disk error stopped it, which becomes `problem`.

        After a first problem nothing more is written. Any error other than a disk's is raised.
        """
        if self.problem is not None:
            return None
        try:
            return write(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            self.problem = disk_problem(error)
            if self.problem is None:
                raise
            return None

    def hashes(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each file by its path relative to `folder`; the files are flushed to disk first."""
        return {str(path.relative_to(folder)): hash_file(path, flush=True) for path in self.files}


def disk_problem(error: Exception) -> str | None:
    """The reason, in words, if `error` means that a file could not be written; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}"
    text = str(error)
    if isinstance(error, shutil.Error):
        return text[:200]
    # torch's writer does not pass the errno on.
    if "PytorchStreamWriter" in text or "inline_container" in text or "unexpected pos" in text:
        return "torch could not write all of a file"
    return None
