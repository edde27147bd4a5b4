"""Building on many hosts, with the bytes of a build by one process.

Over MPI (`mpirun … gaguide data build`), or by tasks that share only a folder (a job array: `--part I/N`).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from typing import Any, cast

from gaguide.data.build.build import (
    LOCK_FILE,
    BuildRequest,
    Progress,
    begin,
    check_request,
    complete,
    plan,
    run,
)
from gaguide.data.build.parts import Part
from gaguide.data.build.pieces import Job, Report, read_pieces, run_part
from gaguide.data.format.manifest import Manifest
from gaguide.errors import Fault, UserError

# Set by the launchers of Open MPI, and of MPICH and its kin.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCK_SECONDS = 600


def parse_part(text: str) -> tuple[int, int]:
    """ "2/8" → (2, 8); `UserError` unless 1 ≤ I ≤ N."""
    number, _, of = text.partition("/")
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise UserError(Fault("--part", "is not I/N with 1 ≤ I ≤ N", "the first of eight tasks is 1/8", text))


def build_part(
    request: BuildRequest, number: int, of: int, on_progress: Callable[[Progress], None] = lambda _: None
) -> Manifest | None:
    """Do the `number`-th of `of` equal shares of a build (from 1).

    Every task is given the same request. The one that finds all shares done makes the folder complete and
    returns its manifest; the others return None. A task that was killed is started again.
    """
    check_request(request)
    work = plan(request, on_progress)
    mine = work.parts[number - 1 :: of]
    with _lock(request, f"{LOCK_FILE}-part-{number}-of-{of}", 0):
        with _lock(request, LOCK_FILE, _LOCK_SECONDS):
            finished = begin(work, mine)
        if finished is not None:
            return finished
        run(work, mine, on_progress)
        with _lock(request, LOCK_FILE, _LOCK_SECONDS):
            finished = begin(work, ())
            if finished is None and all(_is_done(work.folder_of_pieces, part) for part in work.parts):
                finished = complete(work, on_progress)
    return finished


@contextmanager
def _lock(request: BuildRequest, name: str, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(request.output / name, timeout=seconds):
            yield
    except Timeout:
        problem = "another build is writing to this folder" + (" as the same part" if "part" in name else "")
        remedy = "wait for it, or give another --output"
        raise UserError(Fault("--output", problem, remedy, str(request.output))) from None


def _is_done(folder: Any, part: Part) -> bool:
    pieces = read_pieces(folder, part.index)
    return bool(pieces) and pieces[-1].last


def mpi_size(environ: Mapping[str, str] = os.environ) -> int:
    """Processes that an MPI launcher has started this program as; 1 without one."""
    return max((int(environ[name]) for name in _SIZES if name in environ), default=1)


@contextmanager
def mpi_pool() -> Iterator[Executor | None]:
    """On MPI rank 0 a pool of all other ranks; these serve it, then get None."""
    try:
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        remedy = "install it (pip install 'gaguide[mpi]') and an MPI library, or start without mpirun"
        raise UserError(Fault("mpirun", f"mpi4py can't be used ({error})", remedy)) from None
    with MPICommExecutor(root=0) as pool:
        yield cast("Executor | None", pool)


def run_in(pool: Executor) -> Callable[[Iterable[Part], Job, Report], None]:
    """A way to make the pieces of parts: in `pool`, whose processes see the same folders."""

    def run_parts_in_pool(parts: Iterable[Part], job: Job, report: Report) -> None:
        parts = list(parts)
        before = {part.index: _so_far(job, part) for part in parts}
        packed = pickle.dumps(job)
        futures: dict[Future[None], Part] = {pool.submit(_run_packed, part, packed): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                part = futures[future]
                rows, size = _so_far(job, part)
                report(rows - before[part.index][0], size - before[part.index][1])
        finally:
            for future in futures:
                future.cancel()

    return run_parts_in_pool


def _so_far(job: Job, part: Part) -> tuple[int, int]:
    pieces = read_pieces(job.folder, part.index)
    return (pieces[-1].rows, pieces[-1].bytes) if pieces else (0, 0)


_jobs: dict[bytes, Job] = {}


def _run_packed(part: Part, packed: bytes) -> None:
    # Unpacked once in each process: it holds a whole tokenizer.
    if packed not in _jobs:
        _jobs.clear()
        _jobs[packed] = pickle.loads(packed)
    run_part(part, _jobs[packed], lambda documents, size: None)
