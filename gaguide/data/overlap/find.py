"""The whole search: open the folders, scan their shards, write the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.manifest import Manifest, ShardInfo
from gaguide.data.format.tokenizer import load_tokenizer, vocabulary_size
from gaguide.data.overlap.index import EvaluationText, TokenIndex, WordIndex
from gaguide.data.overlap.report import (
    EXAMPLES_FILE,
    SUMMARY_FILE,
    ExampleOverlap,
    TaskOverlap,
    by_task,
    overlaps,
    write_examples,
)
from gaguide.data.overlap.scan import ScannedShard, Search, scan_folder
from gaguide.data.overlap.text import TokenText
from gaguide.data.read.blocks import CACHE_BYTES
from gaguide.data.read.folder import ShardFolder, open_folder
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.files import write_json

WORK_FOLDER = ".shards"
"""Subfolder of the results by shard, with which an interrupted search continues."""


@dataclass(frozen=True)
class OverlapResult:
    """The result of a search."""

    examples: tuple[ExampleOverlap, ...]
    """Each example of each task."""
    tasks: tuple[TaskOverlap, ...]
    """Counts by task."""
    tokens: int
    """Training tokens that were searched."""
    seconds: float
    """Duration of this call."""


def find_overlap(
    folders: Sequence[str],
    examples: Sequence[EvaluationText],
    output: Path,
    split: str = "train",
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> OverlapResult:
    """Search the shards of `folders` (paths or addresses) for `examples`, and write both files of `output`.

    on_progress: called with tokens searched and tokens in all. Raises a `UserError` with every fault of the
    folders, which must have one tokenizer.
    """
    begun = time.monotonic()
    opened = _open(folders, split)
    total = sum(info.tokens for _, infos in opened for info in infos)
    search = _search(opened[0][0], examples)
    done = 0

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        on_progress(done, total)

    scanned: list[ScannedShard] = []
    for folder, infos in opened:
        work = output / WORK_FOLDER
        scanned += scan_folder(folder.name, infos, search, work, workers, report)
    found = tuple(overlaps(search.words, search.tokens, scanned))
    result = OverlapResult(found, tuple(by_task(found)), total, time.monotonic() - begun)
    write_examples(output / EXAMPLES_FILE, found)
    manifests = [folder.manifest for folder, _ in opened]
    write_json(output / SUMMARY_FILE, _summary(result, folders, split, manifests, search))
    return result


def _open(folders: Sequence[str], split: str) -> list[tuple[ShardFolder, tuple[ShardInfo, ...]]]:
    opened: list[tuple[ShardFolder, tuple[ShardInfo, ...]]] = []
    with FaultCollector() as faults:
        for name in folders:
            with faults.catching():
                folder = open_folder(name, CACHE_BYTES)
                infos = folder.manifest.splits.get(split, ())
                if not infos:
                    remedy = suggestion(split, folder.manifest.splits)
                    raise UserError.of("--split", f"{name} does not have it", remedy, split)
                folder.check(infos)
                opened.append((folder, infos))
        if len({folder.manifest.tokenizer_fingerprint for folder, _ in opened}) > 1:
            problem = "the folders were made with different tokenizers"
            remedy = "run one command for each tokenizer, each with its own --output"
            faults.add(Fault("SHARDS", problem, remedy))
    return opened


def _search(folder: ShardFolder, examples: Sequence[EvaluationText]) -> Search:
    tokenizer = load_tokenizer(folder.tokenizer_folder)
    encoder = DocumentEncoder(tokenizer)
    text = TokenText(tokenizer, [example.texts[0] for example in examples])
    # Whatever the tokenizer drops from a text (accents, case) is missing in the shards too.
    words = WordIndex(examples, lambda one: text.of(encoder.encode(one)))
    return Search(words, TokenIndex(examples, encoder.encode, vocabulary_size(tokenizer)), text)


def _summary(
    result: OverlapResult, folders: Sequence[str], split: str, manifests: Sequence[Manifest], search: Search
) -> dict[str, Any]:
    return {
        "shards": [
            {"folder": name, "fingerprint": manifest.fingerprint}
            for name, manifest in zip(folders, manifests, strict=True)
        ],
        "split": split,
        "tokens": result.tokens,
        "examples": search.words.fingerprint,
        "tasks": [asdict(task) for task in result.tasks],
    }
