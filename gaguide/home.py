"""A home folder and a name for users that the machine does not know.

Containers and some clusters run programs under a user id without an entry in passwd, and without HOME. torch
then raises KeyError, pathlib RuntimeError, and other libraries write into a folder named `~`.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path


def ensure_home(environ: MutableMapping[str, str], uid: int) -> str | None:
    """Set HOME, and USER, where neither `environ` nor the machine knows them; returns a message to report.

    The folder is `gaguide-home-UID` in the folder for temporary files: caches do not outlive that.
    """
    try:
        pwd.getpwuid(uid)
        return None
    except KeyError:
        pass
    environ.setdefault("USER", str(uid))
    if environ.get("HOME"):
        return None
    home = Path(tempfile.gettempdir()) / f"gaguide-home-{uid}"
    home.mkdir(mode=0o700, exist_ok=True)
    environ["HOME"] = str(home)
    return f"user {uid} has no home folder: caches go to {home} (export HOME to choose)"


def ensure_home_here() -> None:
    """`ensure_home` for this process, reported on standard error."""
    reported = ensure_home(os.environ, os.getuid())
    if reported is not None:  # once: child processes inherit HOME
        print(reported, file=sys.stderr, flush=True)
