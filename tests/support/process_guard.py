"""Holds that only tests marked `processes` start any, so that `make test-fast` stays fast.

Python, launchers and browsers count; short tools such as git, bash or a stub of a Slurm command do not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SLOW_TO_START = re.compile(r"(python|pytest|gaguide|deepspeed|torchrun|mpirun|mpiexec|chrom)")
_WORDS = 8  # of a command line: a browser comes after the shell that redirects for it

_forbidden_for: str | None = None


@contextmanager
def no_processes(test: str) -> Iterator[None]:
    """Inside, starting a process through `subprocess` raises `AssertionError` with the name of the test."""
    global _forbidden_for
    _forbidden_for = test
    try:
        yield
    finally:
        _forbidden_for = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _forbidden_for is None or event != "subprocess.Popen":
        return
    command = arguments[1]
    words = [command] if isinstance(command, (str, bytes)) else list(command)[:_WORDS]  # type: ignore[call-overload]
    if Path(str(words[0])).name == "git":  # its arguments are paths, such as this package's folder
        return
    if any(_SLOW_TO_START.match(Path(str(word)).name) for word in words):
        raise AssertionError(f"{_forbidden_for} starts {words[0]}: mark it with @pytest.mark.processes")


sys.addaudithook(_audit)
