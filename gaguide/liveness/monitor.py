"""A thread that polls checks and ends this process when one of them requests it."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from gaguide.distributed.launcher import launchers
from gaguide.errors import LoneError, PreemptedError, UserError
from gaguide.log import has_reader, say

POLL_SECONDS = 0.5
_JOIN_SECONDS, _JOIN_SECONDS_AFTER_ERROR = 5.0, 60.0


@dataclass(frozen=True)
class Ending:
    """How this process must end."""

    exit_code: int
    """Its exit code."""
    message: str | None = None
    """Message that it prints first; None where another rank of this host prints it."""


class Check:
    """One kind of evidence that ranks are lost or hang. This base class finds nothing."""

    def start(self, selector: selectors.BaseSelector) -> None:
        """Prepare; sockets registered with `selector` cause a poll as soon as they are readable."""

    def poll(self) -> Ending | None:
        """How the process must end, or None to continue; in the monitor's thread, must not block."""
        return None

    def leave(self) -> None:
        """Agree with the other ranks that the work is done, while the thread still polls (main thread)."""

    def close(self, error: BaseException | None) -> Ending | None:
        """Finish after the last poll (main thread); `error` is one that this rank alone raised."""
        return None


class LauncherCheck(Check):
    """Calls `on_loss` with the reason, once, when a launcher of this process has died or its reader is
    gone.

    Ranks whose launcher was killed would otherwise run on unseen.
    """

    def __init__(self, on_loss: Callable[[str], Ending | None]) -> None:
        self._on_loss = on_loss
        self._lost = False

    def poll(self) -> Ending | None:
        """The result of `on_loss` at the poll that finds the loss; else None."""
        if self._lost:
            return None
        if launchers().gone():
            reason = "its launcher has died"
        elif not has_reader():  # a launcher on a host without ranks: only its ssh connection shows its end
            reason = "its output is no longer read"
        else:
            return None
        self._lost = True
        return self._on_loss(reason)


class Monitor:
    """Polls checks in a thread, from entry to exit of the context."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._selector = selectors.DefaultSelector()
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._stop_reader, selectors.EVENT_READ)
        for check in self._checks:
            check.start(self._selector)
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # All ranks raise these two together; any other error is this rank's alone.
        together = isinstance(error, (UserError, PreemptedError)) and not isinstance(error, LoneError)
        own = None if together else error
        try:
            if own is None:
                for check in self._checks:
                    check.leave()
        except Exception as broken:
            own = broken
            raise
        finally:
            self._finish(own)

    def _finish(self, own: BaseException | None) -> None:
        self._stopped.set()
        self._stop_writer.send(b".")
        # A thread that outlives the interpreter can abort it; a thread that hangs is not waited for.
        self._thread.join(_JOIN_SECONDS if own is None else _JOIN_SECONDS_AFTER_ERROR)
        for check in self._checks:
            _end_if(check.close(own))
        self._selector.close()
        self._stop_reader.close()
        self._stop_writer.close()

    def _run(self) -> None:
        while True:
            self._selector.select(POLL_SECONDS)
            if self._stopped.is_set():
                return
            for check in self._checks:
                _end_if(check.poll())


def _end_if(ending: Ending | None) -> None:
    if ending is None:
        return
    if ending.message is not None:
        say(ending.message, error=True)
    os._exit(ending.exit_code)
