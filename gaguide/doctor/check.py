"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
"""fail: no run works. warn: some runs do not work, or the check was inconclusive."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    """Name of the check."""
    status: Status
    """Whether the check passed."""
    found: str
    """The finding."""
    remedy: str = ""
    """The remedy, such as a command to copy; empty if the status is ok."""


def ok(name: str, found: str) -> Check:
    """A check that passed."""
    return Check(name, "ok", found)


def warn(name: str, found: str, remedy: str) -> Check:
    """A check that did not pass and that some runs depend on."""
    return Check(name, "warn", found, remedy)


def fail(name: str, found: str, remedy: str) -> Check:
    """A check that did not pass and that every run depends on."""
    return Check(name, "fail", found, remedy)


def guarded(name: str, run: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """The checks that `run` returns; a warning if it raises, so that one check cannot hide the others."""
    try:
        made = run()
        return [made] if isinstance(made, Check) else list(made)
    except Exception as error:  # whatever it raises is the finding of this check
        return [warn(name, f"could not be checked ({type(error).__name__}: {error})", "check it by hand")]
