"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """`fail`: gaguide can't work so. `warn`: something that some runs need is missing.

    found: what there is. remedy: what to do about it; empty where all is well.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", found)


def warn(name: str, found: str, remedy: str) -> Check:
    """Some runs would miss this."""
    return Check(name, "warn", found, remedy)


def fail(name: str, found: str, remedy: str) -> Check:
    """Nothing, or not the main thing, would work."""
    return Check(name, "fail", found, remedy)


def guarded(name: str, look: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """The checks that `look` makes; a check that breaks on an odd machine must not hide the others."""
    try:
        made = look()
        return [made] if isinstance(made, Check) else list(made)
    except Exception as error:  # whatever it is, it is this check's finding
        return [warn(name, f"could not be checked ({type(error).__name__}: {error})", "look at it by hand")]
