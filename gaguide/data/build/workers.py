"""Running the parts of a build: in this process, or shared by several on this machine."""

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

from gaguide.data.build.parts import Part
from gaguide.data.build.pieces import Job, Report, run_part
from gaguide.errors import Fault, UserError

_POLL_SECONDS = 0.5


def run_parts(parts: Iterable[Part], job: Job, report: Report, workers: int) -> None:
    """Make all pieces of `parts`; the files are the same for any number of workers."""
    parts = list(parts)
    if workers == 1 or len(parts) <= 1:
        for part in parts:
            run_part(part, job, report)
        return
    # Spawned, not forked: tokenizers and Arrow run threads, which a fork would leave in an unknown state.
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 3)  # documents, bytes, and whether to stop
    with ProcessPoolExecutor(min(workers, len(parts)), context, _start_worker, (job, done)) as pool:
        pending: set[Future[None]] = {pool.submit(_run_in_worker, part) for part in parts}
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
            remedy = "give it more memory or fewer --workers; the same command goes on where this one stopped"
            raise UserError(Fault("--workers", "a worker process was killed", remedy, workers)) from None
        finally:
            done[2] = True
            pool.shutdown(wait=True, cancel_futures=True)


_job: Job
_done: Any


def _start_worker(job: Job, done: Any) -> None:
    global _job, _done
    _job, _done = job, done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Without this, workers would wait for work for ever after their parent was killed."""
    connection.wait([sentinel])
    os._exit(1)


class _StoppedError(Exception):
    """The build has failed elsewhere, or was interrupted."""


def _run_in_worker(part: Part) -> None:
    def report(documents: int, size: int) -> None:
        if _done[2]:
            raise _StoppedError
        with _done.get_lock():
            _done[0] += documents
            _done[1] += size

    run_part(part, _job, report)
