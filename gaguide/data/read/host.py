"""What the processes of one host share: a folder on its own disk, and locks that end with their holder."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gaguide.errors import Fault, UserError

NODE_FOLDER_VARIABLE = "GAGUIDE_NODE_CACHE"


def node_folder() -> Path:
    """This user's folder on this host's own disk: $GAGUIDE_NODE_CACHE, else one in the temporary folder."""
    named = os.environ.get(NODE_FOLDER_VARIABLE)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"gaguide-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a shared temporary folder anybody could have made it first.
        problem = None if folder.stat().st_uid == os.getuid() else "belongs to another user"
    except OSError as error:
        problem = f"can't be made ({error.strerror})"
    if problem:
        remedy = "name a folder of your own on the host's own disk"
        raise UserError(Fault(NODE_FOLDER_VARIABLE, problem, remedy, str(folder)))
    return folder


@contextmanager
def host_lock(path: Path, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Hold the lock file `path` among the processes of this host; yields it, or None where another holds it.

    The kernel releases it when its holder ends, however that happens. The file stays.
    """
    with path.open("ab") as file:
        yield file if flock(file, fcntl.LOCK_EX, wait) else None


def flock(file: IO[bytes], kind: int, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False where another holds it and `wait` is false."""
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
