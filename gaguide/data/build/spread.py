"""Build on many hosts, with the same bytes as a build by one process.

Over MPI (`mpirun … gaguide data build`), or by tasks that share only a folder (a job array: `--part I/N`).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from typing import cast

from gaguide.data.build.build import (
    LOCK_FILE,
    PartEncoder,
    build_lock,
    encode_parts,
    finish_build,
    start_build,
)
from gaguide.data.build.encode import EncodingSpec, Report, encode_part
from gaguide.data.build.parts import Part
from gaguide.data.build.request import BuildRequest, Progress, check_request, prepare_build
from gaguide.data.format.manifest import Manifest
from gaguide.data.format.pieces import is_part_complete, read_pieces
from gaguide.errors import UserError

# Set by the launchers of Open MPI, and of MPICH and its relatives.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOCK_SECONDS = 600


def parse_part(text: str) -> tuple[int, int]:
    """Parse "2/8" as (2, 8); `UserError` unless 1 ≤ I ≤ N."""
    number, _, of = text.partition("/")
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise UserError.of("--part", "must be I/N with 1 ≤ I ≤ N", "the first of eight tasks is 1/8", text)


def build_part(
    request: BuildRequest, number: int, of: int, on_progress: Callable[[Progress], None] = lambda _: None
) -> Manifest | None:
    """Build the `number`-th of `of` equal shares of a folder (from 1).

    Every task gets the same request. The task that finds all shares encoded completes the folder and returns
    its manifest; the others return None. A task that was killed can be started again.
    """
    check_request(request)
    build = prepare_build(request, on_progress)
    mine = build.parts[number - 1 :: of]
    output = request.output
    problem = "another build is writing to this folder as the same part"
    with build_lock(output, f"{LOCK_FILE}-part-{number}-of-{of}", problem=problem):
        with build_lock(output, seconds=_LOCK_SECONDS):
            manifest = start_build(build, mine)
        if manifest is not None:
            return manifest
        encode_parts(build, mine, on_progress)
        with build_lock(output, seconds=_LOCK_SECONDS):
            manifest = start_build(build, ())
            if manifest is None and all(
                is_part_complete(build.piece_folder, part.index) for part in build.parts
            ):
                manifest = finish_build(build, on_progress)
    return manifest


def mpi_size(environ: Mapping[str, str] = os.environ) -> int:
    """Number of processes that an MPI launcher started this program as; 1 without a launcher."""
    return max((int(environ[name]) for name in _SIZES if name in environ), default=1)


@contextmanager
def mpi_pool() -> Iterator[Executor | None]:
    """On MPI rank 0 a pool of all other ranks; on these None, after they have served the pool to its end."""
    try:
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        remedy = "install it (pip install 'gaguide[mpi]') and an MPI library, or start without mpirun"
        raise UserError.of("mpirun", f"mpi4py cannot be used ({error})", remedy) from None
    with MPICommExecutor(root=0) as pool:
        yield cast("Executor | None", pool)


def encoder_in(pool: Executor) -> PartEncoder:
    """A function that encodes parts in `pool`, whose processes must see the same folders."""

    def encode_in_pool(parts: Iterable[Part], spec: EncodingSpec, report: Report) -> None:
        parts = list(parts)
        before = {part.index: _encoded_so_far(spec, part) for part in parts}
        pickled = pickle.dumps(spec)
        futures: dict[Future[None], Part] = {
            pool.submit(_encode_pickled, part, pickled): part for part in parts
        }
        try:
            for future in as_completed(futures):
                future.result()
                part = futures[future]
                rows, size = _encoded_so_far(spec, part)
                report(rows - before[part.index][0], size - before[part.index][1])
        finally:
            for future in futures:
                future.cancel()

    return encode_in_pool


def _encoded_so_far(spec: EncodingSpec, part: Part) -> tuple[int, int]:
    pieces = read_pieces(spec.folder, part.index)
    return (pieces[-1].rows, pieces[-1].bytes) if pieces else (0, 0)


_specs: dict[bytes, EncodingSpec] = {}


def _encode_pickled(part: Part, pickled: bytes) -> None:
    # Unpickled once in each process: it contains a whole tokenizer.
    if pickled not in _specs:
        _specs.clear()
        _specs[pickled] = pickle.loads(pickled)
    encode_part(part, _specs[pickled], lambda documents, size: None)
