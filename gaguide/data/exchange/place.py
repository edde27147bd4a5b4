"""A folder that appears as a whole when everything in it is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gaguide.data.build.build import LOCK_FILE, build_lock
from gaguide.errors import UserError
from gaguide.files import sync_folder, sync_folders


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield a hidden folder next to `output`, which takes its name at the end of the block.

    Files of an interrupted call are written again. Raises a `UserError` for an `output` that holds
    anything, cannot be made, or is being written by another process.
    """
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        found = sorted(output.iterdir()) if output.exists() else []
    except OSError as error:
        problem, remedy = f"cannot be created ({error.strerror})", "give a folder that is writable"
        raise UserError.of("--output", problem, remedy, str(output)) from None
    if found:
        partial.rmdir() if not any(partial.iterdir()) else None
        problem = f"the folder is not empty (it contains {found[0].name})"
        raise UserError.of("--output", problem, "give a new or an empty folder", str(output))
    with build_lock(partial, problem="another process is writing to this folder"):
        for left in partial.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != LOCK_FILE:
                left.unlink()
        yield partial
        (partial / LOCK_FILE).unlink(missing_ok=True)
        sync_folders(partial)
        partial.replace(output)
        sync_folder(output.parent)
