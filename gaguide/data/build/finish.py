"""The end of a build: pieces become numbered shards, and the manifest declares the folder complete.

Each step can be repeated, so a kill between any two of them costs nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gaguide.data.build.parts import Part
from gaguide.data.build.pieces import TRAIN, VALIDATION, Job, Piece, read_pieces
from gaguide.data.build.sources import Source
from gaguide.data.format.manifest import SCHEMA_VERSION, TOKENIZER_FOLDER, Manifest, ShardInfo, write_manifest
from gaguide.data.format.shards import open_shard, shard_name, write_shard
from gaguide.data.format.tokenizer import vocabulary_size
from gaguide.errors import Fault, UserError
from gaguide.files import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def finish(
    output: Path,
    parts: Iterable[Part],
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    shard_tokens: int,
    build_id: str,
) -> Manifest:
    """Name the shards of all `parts`, whose pieces are there; write the tokenizer and, last, the manifest."""
    pieces = [piece for part in parts for piece in read_pieces(job.folder, part.index)]
    dropped: Counter[str] = Counter()
    for piece in pieces:
        dropped.update(piece.dropped)
    if not any(piece.documents for piece in pieces):
        raise UserError(_nothing(source, dropped))
    splits = {
        TRAIN: _name_train_shards(output, pieces, job),
        VALIDATION: _join_validation(output, pieces, job, shard_tokens),
    }
    splits = {split: shards for split, shards in splits.items() if shards}
    _save_tokenizer(output, tokenizer, job.folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=source.description,
        revision=source.revision,
        documents=sum(shard.documents for shards in splits.values() for shard in shards),
        tokens=sum(shard.tokens for shards in splits.values() for shard in shards),
        dropped=dict(sorted(dropped.items())),
        vocab_size=vocabulary_size(tokenizer),
        eos_token_id=job.eos_token_id,
        tokenizer_fingerprint=job.tokenizer_fingerprint,
        token_dtype=job.token_dtype,
        splits=splits,
        tokenizer_files=_file_names(output / TOKENIZER_FOLDER),
        build_id=build_id,
    )
    sync_folder(output)
    write_manifest(output, manifest)
    return manifest


def _nothing(source: Source, dropped: Counter[str]) -> Fault:
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "it is empty"
    remedy = "name the field that holds the text by --text-field, or give another source"
    return Fault("--source", f"no document could be used ({counted})", remedy, source.description)


def _name_train_shards(output: Path, pieces: list[Piece], job: Job) -> tuple[ShardInfo, ...]:
    made = [piece.shards[TRAIN] for piece in pieces if TRAIN in piece.shards]
    named = []
    for index, shard in enumerate(made):
        final = shard_name(TRAIN, index)
        waiting = job.folder / shard.file
        if waiting.exists():  # else an earlier, interrupted end of this build has renamed it
            waiting.replace(output / final)
        named.append(dataclasses.replace(shard, file=final))
    return tuple(named)


def _join_validation(output: Path, pieces: list[Piece], job: Job, shard_tokens: int) -> tuple[ShardInfo, ...]:
    """Held-out documents are few in each piece: join them into shards of the usual size."""
    named = []
    for index, documents in enumerate(_batches(_validation_documents(pieces, job), shard_tokens)):
        path = output / shard_name(VALIDATION, index)
        named.append(write_shard(path, documents, np.dtype(job.token_dtype), job.tokenizer_fingerprint))
    return tuple(named)


def _validation_documents(pieces: list[Piece], job: Job) -> Iterator[np.ndarray]:
    for piece in pieces:
        info = piece.shards.get(VALIDATION)
        if info is not None:
            shard = open_shard(job.folder / info.file, info, job.tokenizer_fingerprint)
            for start, end in zip(shard.offsets, shard.offsets[1:]):
                yield shard.tokens[start:end]


def _batches(documents: Iterator[np.ndarray], shard_tokens: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    tokens = 0
    for document in documents:
        if batch and tokens + len(document) > shard_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(document)
        tokens += len(document)
    if batch:
        yield batch


def _file_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))


def _save_tokenizer(output: Path, tokenizer: PreTrainedTokenizerBase, work: Path) -> None:
    final = output / TOKENIZER_FOLDER
    if final.is_dir():
        return
    temporary = work / "tokenizer"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    temporary.replace(final)
