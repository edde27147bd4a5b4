"""Look for the runs of evaluation examples in every shard, with several processes; resumable by shard.

The findings of each shard are a small file, written atomically. Its name contains the identities of shard and
examples, so a repeated command reuses finished shards, and never the result of another search.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.data.build.workers import obey_parent, worker_killed
from gaguide.data.format.manifest import ShardInfo
from gaguide.data.format.shards import Shard
from gaguide.data.overlap.index import TokenIndex, WordIndex
from gaguide.data.overlap.text import TokenText
from gaguide.data.read.blocks import CACHE_BYTES
from gaguide.data.read.folder import ShardFolder, open_folder
from gaguide.files import replacing

TOKEN_RUNS = 0
"""Key of the token runs; the key of word runs is their length."""
_VERSION = 1
_CHUNK_TOKENS = 1 << 19


@dataclass(frozen=True)
class Found:
    """The runs of one kind (a length in words, or `TOKEN_RUNS`) that occur in one shard."""

    numbers: np.ndarray
    """Numbers of the runs [k], ascending."""
    documents: np.ndarray
    """Number of documents in which each occurs [k]."""
    first: np.ndarray
    """The first of these documents [k], counted within the shard."""


@dataclass(frozen=True)
class ScannedShard:
    """Findings of one shard."""

    folder: str
    """Folder or address of the shard."""
    file: str
    """Its file."""
    found: dict[int, Found]
    """By kind of run."""


@dataclass(frozen=True)
class Search:
    """The runs to look for, and the text of tokens. Can be pickled."""

    words: WordIndex
    """Runs of words."""
    tokens: TokenIndex
    """Runs of tokens, for the tokenizer of the shards."""
    text: TokenText
    """Text of the shards' tokens."""


@dataclass(frozen=True)
class _ShardScan:
    folder: str
    info: ShardInfo
    result: Path


def scan_folder(
    folder: str,
    infos: Sequence[ShardInfo],
    search: Search,
    work: Path,
    workers: int,
    report: Callable[[int], None],
) -> Iterator[ScannedShard]:
    """The findings of each shard of a folder or an address, in order.

    work: folder of the results by shard. report: called with the number of tokens of each shard that is done.
    Raises a `UserError` for a damaged shard and for a worker that was killed.
    """
    work.mkdir(parents=True, exist_ok=True)
    jobs = [_ShardScan(folder, info, work / _result_name(info, search)) for info in infos]
    left = [job for job in jobs if not job.result.is_file()]
    report(sum(job.info.tokens for job in jobs if job not in left))
    if workers == 1 or len(left) <= 1:
        for job in left:
            _scan(job, search)
            report(job.info.tokens)
    elif left:
        _scan_in_processes(left, search, workers, report)
    for job in jobs:
        yield ScannedShard(folder, job.info.file, _read(job.result))


def _result_name(info: ShardInfo, search: Search) -> str:
    key = f"{_VERSION} {info.content or info.sha256} {search.words.fingerprint} {search.text.fingerprint}"
    return f"{hashlib.sha256(key.encode()).hexdigest()}.npz"


def _scan_in_processes(
    jobs: Sequence[_ShardScan], search: Search, workers: int, report: Callable[[int], None]
) -> None:
    # Spawned, like the processes of a build.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (search,)) as pool:
        futures = {pool.submit(_scan_in_worker, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                report(futures[future].info.tokens)
        except BrokenProcessPool:
            raise worker_killed(workers, "the same command continues after the last shard") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_search: Search


def _start_worker(search: Search) -> None:
    global _search
    _search = search
    obey_parent()


def _scan_in_worker(job: _ShardScan) -> None:
    _scan(job, _search)


def _scan(job: _ShardScan, search: Search) -> None:
    folder: ShardFolder = open_folder(job.folder, CACHE_BYTES)
    shard = folder.open(job.info)
    tallies = {n: _Tally() for n in (*search.words.sets, TOKEN_RUNS)}
    for first, after in _chunks(shard.offsets):
        _find_words(shard, first, after, search, tallies)
        _find_tokens(shard, first, after, search, tallies[TOKEN_RUNS])
    folder.wait_for_checksums()  # a result of damaged tokens must not be kept
    with replacing(job.result) as temporary, temporary.open("wb") as file:
        # Without allow_pickle=False, which numpy 2.0 takes for an array of that name.
        arrays: dict[str, Any] = {
            f"{n}_{name}": value for n, tally in tallies.items() for name, value in tally.arrays()
        }
        np.savez_compressed(file, **arrays)


def _read(path: Path) -> dict[int, Found]:
    with np.load(path) as arrays:
        kinds = {int(name.split("_")[0]) for name in arrays.files}
        return {n: Found(*(arrays[f"{n}_{name}"] for name in _NAMES)) for n in sorted(kinds)}


_NAMES = ("numbers", "documents", "first")


class _Tally:
    """The documents in which the runs of one kind occur."""

    def __init__(self) -> None:
        self._count: dict[int, int] = {}
        self._first: dict[int, int] = {}

    def add(self, numbers: np.ndarray, documents: np.ndarray) -> None:
        """Runs and the document that each was found in, ascending by document over all calls."""
        for number, document in sorted(set(zip(numbers.tolist(), documents.tolist()))):
            self._count[number] = self._count.get(number, 0) + 1
            self._first[number] = min(document, self._first.get(number, document))

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a `Found`, by name."""
        numbers = sorted(self._count)
        yield "numbers", np.array(numbers, np.int64)
        yield "documents", np.array([self._count[number] for number in numbers], np.int64)
        yield "first", np.array([self._first[number] for number in numbers], np.int64)


def _chunks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of whole documents with about `_CHUNK_TOKENS` tokens, at least one document each."""
    first = 0
    while first < len(offsets) - 1:
        wanted = int(offsets[first]) + _CHUNK_TOKENS
        after = max(first + 1, int(np.searchsorted(offsets, wanted, side="right")) - 1)
        yield first, min(after, len(offsets) - 1)
        first = after


def _find_words(shard: Shard, first: int, after: int, search: Search, tallies: dict[int, _Tally]) -> None:
    if not search.words.sets:
        return
    parts, starts, at = [], [], 0
    for document in range(first, after):
        ids = search.words.ids(
            search.text.of(shard.tokens[shard.offsets[document] : shard.offsets[document + 1]])
        )
        parts += [ids, np.zeros(1, np.int64)]  # a run does not reach into the next document
        starts.append(at)
        at += len(ids) + 1
    joined = np.concatenate(parts)
    for n, each in search.words.sets.items():
        places, numbers = each.find(joined)
        documents = first + np.searchsorted(starts, places, side="right") - 1
        tallies[n].add(numbers, documents)


def _find_tokens(shard: Shard, first: int, after: int, search: Search, tally: _Tally) -> None:
    if search.tokens.set is None:
        return
    offsets = shard.offsets[first : after + 1].astype(np.int64)
    ids = search.tokens.ids(shard.tokens[offsets[0] : offsets[-1]])
    # A 0 between documents, as between those of words.
    joined = np.insert(ids, offsets[1:-1] - offsets[0], 0)
    places, numbers = search.tokens.set.find(joined)
    starts = offsets[:-1] - offsets[0] + np.arange(len(offsets) - 1)
    tally.add(numbers, first + np.searchsorted(starts, places, side="right") - 1)
