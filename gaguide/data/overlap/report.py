"""Findings by example: which of its runs occur in the training text, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.data.overlap.index import EvaluationText, Runs, TokenIndex, WordIndex
from gaguide.data.overlap.scan import TOKEN_RUNS, ScannedShard
from gaguide.files import replacing
from gaguide.grouping import grouped

EXAMPLES_FILE, SUMMARY_FILE = "overlap.parquet", "overlap.json"
TOKEN_SHARE = 0.7
"""Share of an example's tokens in runs of 8 that are found, from which it is seen by tokens."""
_MAX_PLACES = 5


@dataclass(frozen=True)
class ExampleOverlap:
    """How much of one evaluation example occurs in the training text."""

    task: str
    """Name of the task."""
    id: str
    """Id of the example within the task."""
    prompts: tuple[str, ...]
    """Its prompts, without demonstrations."""
    continuations: tuple[str, ...]
    """Its classes, or the completion."""
    comparable: bool
    """Whether it has 8 words or more; a shorter one is compared by its tokens only."""
    word_runs: int
    """Its different runs of words."""
    word_runs_found: int
    """Number of them that occur in the training text."""
    word_share: float
    """Largest share, over its texts, of words that lie in a found run."""
    token_runs: int
    """Its different runs of 8 tokens."""
    token_runs_found: int
    """Number of them that occur in the training text."""
    token_share: float
    """Largest share, over its texts, of tokens that lie in a found run."""
    documents: int
    """Number of training documents that contain its most frequent found run of words."""
    places: tuple[str, ...]
    """Some documents in which it was found, as FOLDER/SHARD:DOCUMENT, counted from 0."""

    @property
    def seen_words(self) -> bool:
        """Whether the training text contains a run of 13 words (or the whole of 8 to 12)."""
        return self.word_runs_found > 0

    @property
    def seen_tokens(self) -> bool:
        """Whether `TOKEN_SHARE` of its tokens lie in runs of 8 that the training text contains."""
        return self.token_share >= TOKEN_SHARE

    def as_row(self) -> dict[str, Any]:
        """The row of `EXAMPLES_FILE`."""
        return asdict(self) | {"seen_words": self.seen_words, "seen_tokens": self.seen_tokens}


@dataclass
class _Places:
    """Where the runs of one kind were found, over all shards."""

    documents: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    first: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, where: str, numbers: np.ndarray, documents: np.ndarray, first: np.ndarray) -> None:
        """Add the findings of one shard."""
        for number, count, document in zip(numbers.tolist(), documents.tolist(), first.tolist()):
            self.documents[number] += count
            if len(self.first[number]) < _MAX_PLACES:
                self.first[number].append(f"{where}:{document}")


def overlaps(words: WordIndex, tokens: TokenIndex, scanned: Iterable[ScannedShard]) -> list[ExampleOverlap]:
    """The overlap of each example with all shards, in the order of the examples."""
    places: dict[int, _Places] = {n: _Places() for n in (*words.sets, TOKEN_RUNS)}
    for shard in scanned:
        for n, found in shard.found.items():
            where = f"{shard.folder}/{shard.file}"
            places[n].add(where, found.numbers, found.documents, found.first)
    found_runs = {n: np.zeros(len(each), bool) for n, each in words.sets.items()}
    found_runs[TOKEN_RUNS] = np.zeros(0 if tokens.set is None else len(tokens.set), bool)
    for n, each in places.items():
        found_runs[n][list(each.documents)] = True
    return [
        _overlap(example, words.runs[at], tokens.runs[at], found_runs, places)
        for at, example in enumerate(words.examples)
    ]


def _overlap(
    example: EvaluationText,
    by_words: Sequence[Runs],
    by_tokens: Sequence[Runs],
    found_runs: dict[int, np.ndarray],
    places: dict[int, _Places],
) -> ExampleOverlap:
    runs = {(run.n, number) for run in by_words for number in run.numbers.tolist()}
    hits = sorted((n, number) for n, number in runs if found_runs[n][number])
    token_runs = {number for run in by_tokens for number in run.numbers.tolist()}
    token_hits = sorted(number for number in token_runs if found_runs[TOKEN_RUNS][number])
    where = [place for n, number in hits for place in places[n].first[number]]
    where += [place for number in token_hits for place in places[TOKEN_RUNS].first[number]]
    return ExampleOverlap(
        task=example.task,
        id=example.id,
        prompts=example.prompts,
        continuations=example.continuations,
        comparable=bool(by_words),
        word_runs=len(runs),
        word_runs_found=len(hits),
        word_share=max((run.covered(found_runs[run.n]) for run in by_words), default=0.0),
        token_runs=len(token_runs),
        token_runs_found=len(token_hits),
        token_share=max((run.covered(found_runs[TOKEN_RUNS]) for run in by_tokens), default=0.0),
        documents=max((places[n].documents[number] for n, number in hits), default=0),
        places=tuple(dict.fromkeys(where))[:_MAX_PLACES],
    )


@dataclass(frozen=True)
class TaskOverlap:
    """The examples of one task, counted."""

    task: str
    """Name of the task."""
    examples: int
    """Number of examples."""
    seen_words: int
    """Examples that share a run of 13 words (or all of their 8 to 12) with the training text."""
    seen_tokens: int
    """Examples with `TOKEN_SHARE` of their tokens in runs of 8 that the training text contains."""
    too_short: int
    """Examples of fewer than 8 words, which are compared by tokens only."""


def by_task(found: Sequence[ExampleOverlap]) -> list[TaskOverlap]:
    """Counts by task, in the order of the tasks."""
    tasks = grouped((each.task, each) for each in found)
    return [
        TaskOverlap(
            task,
            len(rows),
            sum(row.seen_words for row in rows),
            sum(row.seen_tokens for row in rows),
            sum(not row.comparable for row in rows),
        )
        for task, rows in tasks.items()
    ]


def write_examples(path: Path, found: Sequence[ExampleOverlap]) -> None:
    """Atomically write one row for each example."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.list_(pa.string())
    kinds = {
        "prompts": texts,
        "continuations": texts,
        "places": texts,
        "task": pa.string(),
        "id": pa.string(),
    }
    kinds |= {name: pa.bool_() for name in ("comparable", "seen_words", "seen_tokens")}
    kinds |= {name: pa.float64() for name in ("word_share", "token_share")}
    counts = ("word_runs", "word_runs_found", "token_runs", "token_runs_found", "documents")
    kinds |= {name: pa.int64() for name in counts}
    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist([row.as_row() for row in found], schema=pa.schema(kinds)), temporary
        )
