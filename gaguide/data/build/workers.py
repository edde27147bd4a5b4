"""Encode the parts of a build in this process, or in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from gaguide.data.build.encode import EncodingSpec, Report, encode_part
from gaguide.data.build.parts import Part
from gaguide.errors import UserError

_POLL_SECONDS = 0.5


def encode_in_processes(parts: Iterable[Part], spec: EncodingSpec, report: Report, workers: int) -> None:
    """Write all pieces of `parts`; the files are the same for any number of workers.

    Raises a `UserError` if a worker was killed.
    """
    parts = list(parts)
    if workers == 1 or len(parts) <= 1:
        for part in parts:
            encode_part(part, spec, report)
        return
    # Spawned, not forked: tokenizers and Arrow run threads, which a fork would leave in an unknown state.
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 3)  # documents, bytes, and whether to stop
    with ProcessPoolExecutor(min(workers, len(parts)), context, _start_worker, (spec, done)) as pool:
        pending: set[Future[None]] = {pool.submit(_encode_in_worker, part) for part in parts}
        reported = (0, 0)
        try:
            while pending:
                finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                now = (done[0], done[1])
                report(now[0] - reported[0], now[1] - reported[1])
                reported = now
        except BrokenProcessPool:
            raise worker_killed(workers, "the same command resumes the build") from None
        finally:
            done[2] = True
            pool.shutdown(wait=True, cancel_futures=True)


_spec: EncodingSpec
_done: Any


def _start_worker(spec: EncodingSpec, done: Any) -> None:
    global _spec, _done
    _spec, _done = spec, done
    obey_parent()


def worker_killed(workers: int, resuming: str) -> UserError:
    """The error of a pool that lost a process to the system; `resuming` says how to resume the work."""
    remedy = f"give it more memory or fewer --workers; {resuming}"
    return UserError.of("--workers", "a worker process was killed", remedy, workers)


def obey_parent() -> None:
    """Leave Ctrl-C, which reaches every process, to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with_parent, args=(parent.sentinel,), daemon=True).start()


def _end_with_parent(sentinel: int) -> None:
    """End this process with its parent: after the parent is killed, a worker would wait for work forever."""
    connection.wait([sentinel])
    os._exit(1)


class _StoppedError(Exception):
    """The build was interrupted, or has failed in another process."""


def _encode_in_worker(part: Part) -> None:
    def report(documents: int, size: int) -> None:
        if _done[2]:
            raise _StoppedError
        with _done.get_lock():
            _done[0] += documents
            _done[1] += size

    encode_part(part, _spec, report)
