"""Shared by the processes of a host: a folder on its local disk, and locks that end with their holder."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gaguide.errors import UserError

HOST_FOLDER_VARIABLE = "GAGUIDE_NODE_CACHE"
"""Environment variable that names the folder."""


def host_folder() -> Path:
    """This user's folder on this host's local disk: $GAGUIDE_NODE_CACHE, or one in the temporary folder.

    Raises a `UserError` if it cannot be created or belongs to another user.
    """
    named = os.environ.get(HOST_FOLDER_VARIABLE)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"gaguide-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a shared temporary folder another user could have created it.
        problem = None if folder.stat().st_uid == os.getuid() else "belongs to another user"
    except OSError as error:
        problem = f"cannot be created ({error.strerror})"
    if problem:
        remedy = "set it to a folder of yours on the host's local disk"
        raise UserError.of(HOST_FOLDER_VARIABLE, problem, remedy, str(folder))
    return folder


@contextmanager
def host_lock(path: Path, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Lock the file `path` against other processes of this host; yield it, or None if another one holds it.

    The kernel releases the lock when its holder ends, however that happens. The file is kept.
    """
    with path.open("ab") as file:
        yield file if flock(file, fcntl.LOCK_EX, wait) else None


def flock(file: IO[bytes], kind: int, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False if another process holds it and `wait` is false."""
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
