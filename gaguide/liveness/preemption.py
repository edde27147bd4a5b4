"""Stopping between two steps: a signal to one rank becomes an agreement of all, and a checkpoint.

Slurm and launchers announce the end of a job by SIGTERM or SIGUSR1, a person by Ctrl-C, and not every rank
hears of it at the same moment. Each signal only raises a wish; a tiny reduction in every step, on a group of
its own beside the step's work, tells all ranks of any rank's wish, so that all stop after the same step.
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
# Launchers repeat a signal at once in other words (Ctrl-C is followed by their SIGTERM).
_SECOND_SIGNAL_SECONDS = 3.0


class Preemption:
    """The wish to stop, on this rank and of all; a context that owns the signals' handlers.

    A second signal, some seconds after the first, ends the process at once.
    """

    def __init__(self, world: World) -> None:
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._reason: str | None = None
        self._since = 0.0
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._asked: Any = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self._before = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asked = self._group = None  # its threads must end before the interpreter does
        if kind is PreemptedError:
            # The launcher ends the other ranks as soon as one has ended; each is to end by itself.
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            return
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def wish(self, reason: str) -> None:
        """Ask that all ranks stop after their step; callable from any thread."""
        if self._reason is None:
            self._since = time.monotonic()
            self._reason = reason

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._reason is not None and time.monotonic() - self._since > _SECOND_SIGNAL_SECONDS:
            os._exit(128 + number)
        self.wish(signal.Signals(number).name)

    def ask(self) -> None:
        """Start asking the other ranks, beside the work that follows (once a step, on every rank)."""
        self._flag.fill_(self._reason is not None)
        if self._group is not None:
            self._asked = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def agreed(self) -> bool:
        """Whether any rank wished to stop when it asked; the same on every rank."""
        if self._asked is not None:
            self._asked.wait()
            self._asked = None
        return bool(self._flag.item())

    def stop(self, step: int, total_steps: int) -> NoReturn:
        """Raise `PreemptedError` on all ranks, with the reason of the first rank that has one."""
        reason = next(each for each in all_gather(self._reason) if each)
        raise PreemptedError(step, total_steps, reason)
