"""Errors a user can mend: each names the field, the value it had, what is wrong with it and the remedy.

Everything else that goes wrong is a bug and keeps its traceback. Checks collect faults into a list and
raise once, so that a person sees all of them at the first try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

EXIT_USER_ERROR = 2
"""Exit code of every gaguide program, on every rank, after a `UserError`."""

EXIT_PREEMPTED = 75
"""Exit code of every rank of a run that was asked to stop and saved its state: the same command goes on."""

EXIT_HUNG = 76
"""Exit code of every rank of a run that its watchdog ended because nothing moved any more."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the field as the user wrote it (`data.block_length`), and the remedy."""

    field: str
    problem: str
    remedy: str
    value: Any = None

    def __str__(self) -> str:
        shown = self.field if self.value is None else f"{self.field} = {self.value!r}"
        return f"{shown}: {self.problem}\n    → {self.remedy}"


class UserError(Exception):
    """One or more faults in what the user gave; printed without a traceback, exit code `EXIT_USER_ERROR`."""

    def __init__(self, faults: Fault | Iterable[Fault]):
        listed = [faults] if isinstance(faults, Fault) else list(faults)
        # Values need not be hashable, so no set here.
        self.faults = tuple(fault for at, fault in enumerate(listed) if fault not in listed[:at])
        super().__init__(str(self))

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return f"{len(self.faults)} problems\n" + "\n".join(f"  {fault}" for fault in self.faults)

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Fault, ...]]]:
        return UserError, (self.faults,)  # ranks send their errors to each other


class PreemptedError(Exception):
    """The run stopped early because it was asked to; its state is saved. `step`: the last one done."""

    def __init__(self, step: int, total_steps: int, reason: str) -> None:
        self.step = step
        told = f"stopped after step {step} of {total_steps} ({reason}); the checkpoint is saved, and the "
        if step == 0:
            told = (
                f"stopped before the first of {total_steps} steps ({reason}); there is nothing to save, the "
            )
        super().__init__(f"{told}same command goes on from it" if step else f"{told}same command begins anew")


def suggestion(name: str, known: Iterable[str], limit: int = 12) -> str:
    """Remedy text for an unknown name: the nearest known one, else the list."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(known[:limit]) + (", …" if len(known) > limit else "")
    return f"known: {listed}"
