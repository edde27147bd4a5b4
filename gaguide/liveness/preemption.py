"""Stopping between two steps: a signal to one rank becomes a stop of all ranks, and a checkpoint.

Slurm and launchers announce the end of a job by SIGTERM or SIGUSR1, a person by Ctrl-C, and the ranks
receive it at different moments, if at all. A signal only records a request; a tiny reduction in every step,
on a separate group that runs alongside the step's work, tells all ranks about it, so that all stop after
the same step.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from gaguide.distributed import World, all_gather
from gaguide.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The signals that stop a run after its step."""

# Launchers repeat a signal at once by another one (their SIGTERM follows Ctrl-C).
_SECOND_SIGNAL_SECONDS = 3.0


class Preemption:
    """Requests to stop, of this rank and of all; a context that owns the signals' handlers.

    Making one is a collective. A second signal, some seconds after the first, ends the process at once.
    """

    def __init__(self, world: World) -> None:
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._reason: str | None = None
        self._requested_at = 0.0
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._reduction: Any = None
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self._previous_handlers = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reduction = self._group = None  # its threads must end before the interpreter does
        if kind is PreemptedError:
            # The launcher signals the other ranks as soon as one has ended; each must finish its own exit.
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            return
        for each, handler in self._previous_handlers.items():
            signal.signal(each, handler)

    def request_stop(self, reason: str) -> None:
        """Request that all ranks stop after their step; may be called from any thread."""
        if self._reason is None:
            self._requested_at = time.monotonic()
            self._reason = reason

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._reason is not None and time.monotonic() - self._requested_at > _SECOND_SIGNAL_SECONDS:
            os._exit(128 + number)
        self.request_stop(signal.Signals(number).name)

    def share(self) -> None:
        """Begin to share the request with all ranks, in the background (every rank, once a step)."""
        self._flag.fill_(self._reason is not None)
        if self._group is not None:
            self._reduction = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def is_stop_agreed(self) -> bool:
        """Whether any rank had a request at the last `share`; the same on every rank."""
        if self._reduction is not None:
            self._reduction.wait()
            self._reduction = None
        return bool(self._flag.item())

    def any_rank(self, value: bool) -> bool:
        """Whether `value` is true on any rank (every rank, between steps); waits for no device."""
        flag = torch.tensor([value], dtype=torch.int32)
        if self._group is not None:
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
        return bool(flag.item())

    def stop(self, step: int, total_steps: int) -> NoReturn:
        """Raise `PreemptedError` on all ranks, with the lowest rank's reason (a collective)."""
        reason = next(each for each in all_gather(self._reason) if each)
        raise PreemptedError(step, total_steps, reason)
