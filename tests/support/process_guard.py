"""Holds that only tests marked `processes` start any, so that `make test-fast` stays fast.

Python, launchers and browsers count; short tools such as git, bash or a stub of a Slurm command do not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = re.compile(r"python[\d.]*|pytest|gaguide|deepspeed|torchrun|mpirun|mpiexec")
_BROWSER = re.compile(r"(chrom|headless)")
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
    names = [Path(str(word)).name for word in words]
    if _PROGRAM.fullmatch(names[0]) or any(map(_BROWSER.match, names)):
        raise AssertionError(f"{_forbidden_for} starts {words[0]}: mark it with @pytest.mark.processes")


sys.addaudithook(_audit)
