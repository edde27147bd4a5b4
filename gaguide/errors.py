"""Errors that a user can correct. Each names the field, its value, the problem and the remedy.

Any other exception is a bug and keeps its traceback. Checks collect their faults in a `FaultCollector`
and raise once, so that a user sees every fault at the first attempt.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from itertools import chain
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

_MASK = "***"
# A password may contain "@", but not a slash.
_USER_INFO = re.compile(r"(\w://)[^/\s\"?#<>]+@")
_SECRET_PARAMETER = re.compile(
    r"([?&;](?:[\w.%-]*(?:sig|token|key|secret|pass|pwd|cred|auth|session|policy)[\w.%-]*)=)[^&;#,)\s'\"<>]+",
    re.IGNORECASE,
)

_LOST = re.compile(r"\w://\*\*\*@|[?&;][\w.%-]+=\*\*\*")

_MAX_FIELD, _MAX_VALUE, _MAX_SENTENCE = 300, 500, 4_000
"""Characters of the parts of a fault in a message; a longer part is cut and its length added."""
_MAX_FAULTS = 500
"""Faults that a message lists; the rest are counted."""

P = ParamSpec("P")
T = TypeVar("T")

EXIT_USER_ERROR = 2
"""Exit code of every gaguide program, on every rank, after a `UserError`."""

EXIT_PREEMPTED = 75
"""Exit code of every rank of a run that was asked to stop and saved its state; it can be resumed."""

EXIT_HUNG = 76
"""Exit code of every rank of a run that the watchdog ended because it made no progress."""


EXIT_NOT_FINITE = 77
"""Exit code of every rank when the result is not finite: a trained model (not exported), or scores."""


class FaultKind(Enum):
    """Kinds of faults that code may branch on; the wording is for people only."""

    INVALID = "invalid"
    """The input is wrong; retrying does not help."""
    BUSY = "busy"
    """Another process holds a resource that is needed; retrying later may help."""


@dataclass(frozen=True)
class Fault:
    """One fault in the user's input. Its text shows no credentials, whatever addresses its fields contain."""

    field: str
    """The field as the user wrote it, such as `data.block_length`."""
    problem: str
    """The problem, as the rest of a sentence that begins with the field."""
    remedy: str
    """The remedy, in the imperative."""
    value: Any = None
    """The value that was given; None leaves it out of the message."""
    kind: FaultKind = FaultKind.INVALID
    """For code that has to distinguish faults."""

    def __str__(self) -> str:
        shown = _cut(self.field, _MAX_FIELD)
        if self.value is not None:
            shown += f" = {_repr(self.value)}"
        problem, remedy = _cut(self.problem, _MAX_SENTENCE), _cut(self.remedy, _MAX_SENTENCE)
        return mask_credentials(f"{shown}: {problem}\n    → {remedy}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"


def _repr(value: Any) -> str:
    """`repr(value)`, shortened if large; the omitted part is never converted to text."""
    if isinstance(value, str) and len(value) > _MAX_VALUE:
        return f"{value[:_MAX_VALUE]!r}… ({len(value):,} characters)"
    if _measure(value, _MAX_VALUE) <= _MAX_VALUE:
        try:
            return _cut(repr(value), 2 * _MAX_VALUE)
        except ValueError:  # Python refuses to print integers of very many digits
            return "a huge number"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return _cut(short.repr(value), _MAX_VALUE)


def _measure(value: Any, limit: int) -> int:
    """Approximate length of `value` when printed; counting stops beyond `limit`."""
    if isinstance(value, (str, bytes)):
        return len(value) + 2
    if isinstance(value, Mapping):
        parts: Iterable[Any] = chain.from_iterable(value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    else:
        return 1
    total = 2
    for part in parts:
        if total > limit:
            break
        total += 2 + _measure(part, limit - total)
    return total


class UserError(Exception):
    """One or more faults in the user's input; printed without a traceback, exit code `EXIT_USER_ERROR`."""

    def __init__(self, faults: Fault | Iterable[Fault]):
        listed = [faults] if isinstance(faults, Fault) else list(faults)
        # Not a set: values need not be hashable.
        self.faults = tuple(fault for at, fault in enumerate(listed) if fault not in listed[:at])
        super().__init__(str(self))

    @classmethod
    def of(
        cls, field: str, problem: str, remedy: str, value: Any = None, kind: FaultKind = FaultKind.INVALID
    ) -> UserError:
        """The error with a single `Fault` of these parts."""
        return cls(Fault(field, problem, remedy, value, kind))

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        lines = [f"  {fault}" for fault in self.faults[:_MAX_FAULTS]]
        if len(self.faults) > _MAX_FAULTS:
            lines.append(f"  and {len(self.faults) - _MAX_FAULTS} more; correct these first")
        return f"{len(self.faults)} problems\n" + "\n".join(lines)

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Fault, ...]]]:
        return UserError, (self.faults,)  # ranks exchange their errors pickled


class LoneError(UserError):
    """Faults that one rank has found alone, while the others wait in a collective: it prints them itself."""


@contextmanager
def reworded(change: Callable[[Fault], Fault]) -> Iterator[None]:
    """Raise a `UserError` of the block with each fault rewritten by `change`, in the user's terms."""
    try:
        yield
    except UserError as error:
        raise UserError(map(change, error.faults)) from None


class FaultCollector:
    """Collects the faults of several checks and raises them as one `UserError`.

        with FaultCollector() as faults:
            faults.add(Fault("a", "must be positive", "give a positive number"))
            value = faults.attempt(read, path)   # None if `read` raised a UserError
            with faults.catching():
                check_everything_else()
        # leaving the block raises what was collected

    An exception other than `UserError` propagates at once. A `UserError` that leaves the block is raised
    together with the faults collected before it.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def __bool__(self) -> bool:
        return bool(self.faults)

    def add(self, *faults: Fault) -> None:
        """Record faults."""
        self.faults.extend(faults)

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Record the faults of a `UserError` raised in the block, and continue after it."""
        try:
            yield
        except UserError as error:
            self.add(*error.faults)

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return `function(*args, **kwargs)`, or None after recording the faults of its `UserError`."""
        with self.catching():
            return function(*args, **kwargs)
        return None

    def raise_if_any(self) -> None:
        """Raise a `UserError` with every fault recorded so far, if there are any."""
        if self.faults:
            raise UserError(self.faults)

    def __enter__(self) -> FaultCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            raise UserError([*self.faults, *error.faults]) from None
        if error is None:
            self.raise_if_any()


class PreemptedError(Exception):
    """The run stopped early because it was asked to; its state after the last completed `step` is saved."""

    def __init__(self, step: int, total_steps: int, reason: str) -> None:
        self.step = step
        if step:
            text = (
                f"stopped after step {step} of {total_steps} ({reason}); the checkpoint is saved, and the "
                "same command resumes from it"
            )
        else:
            text = (
                f"stopped before the first of {total_steps} steps ({reason}); there is nothing to save, and "
                "the same command starts from the beginning"
            )
        super().__init__(text)


def mask_credentials(text: str) -> str:
    """`text` with the user part and the secret parameters of every address in it replaced by `***`.

    Covers `https://USER:PASSWORD@host/…`, signed addresses (`X-Amz-Signature`, `X-Goog-Credential`, `sig`,
    `Key-Pair-Id`) and tokens in a query. Masking twice changes nothing.
    """
    return _SECRET_PARAMETER.sub(rf"\g<1>{_MASK}", _USER_INFO.sub(rf"\g<1>{_MASK}@", text))


def mask_all(value: Any) -> Any:
    """Plain JSON data with `mask_credentials` applied to every text in it."""
    if isinstance(value, str):
        return mask_credentials(value)
    if isinstance(value, Mapping):
        return {key: mask_all(item) for key, item in value.items()}
    return [mask_all(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_masked(address: str) -> bool:
    """Whether `address` has lost credentials to `mask_credentials`, so that nothing can be read from it."""
    return _LOST.search(address) is not None


def is_signed(address: str) -> bool:
    """Whether the query of an address has secret parameters: it then changes with every signature."""
    return _SECRET_PARAMETER.search(address) is not None


class DivergedError(Exception):
    """The run did all its steps, but its model is unusable; the message gives reason and remedy."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def not_one_of(field: str, value: Any, known: Iterable[Any]) -> Fault:
    """The fault of a `value` that is not one of the few that are `known`."""
    names = list(map(str, known))
    remedy = _nearest(str(value), names) or "choose one of them"
    return Fault(field, f"must be one of {', '.join(names)}", remedy, value)


def suggestion(name: str, known: Iterable[str], limit: int = 12, otherwise: str = "") -> str:
    """Remedy for an unknown name: the closest known one, else a list of at most `limit` known names.

    `otherwise` is an alternative remedy, such as "give a file".
    """
    known = sorted(known)
    if near := _nearest(name, known):
        return near + (f" Or {otherwise}" if otherwise else "")
    listed = ", ".join(known[:limit]) + (", …" if len(known) > limit else "")
    return f"known: {listed}" + (f"; or {otherwise}" if otherwise else "")


def _nearest(name: str, known: list[str]) -> str:
    """The closest known name as a question; empty where none is close."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
