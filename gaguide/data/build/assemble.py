"""The end of a build: pieces become numbered shards, and the manifest declares the folder complete.

Every step can be repeated, so a build that is killed between two steps loses nothing.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaguide.data.build.encode import EncodingSpec
from gaguide.data.build.identity import describe_identity
from gaguide.data.build.request import PreparedBuild
from gaguide.data.build.rows import Reason
from gaguide.data.build.sources import Source
from gaguide.data.format.manifest import (
    SCHEMA_VERSION,
    TOKENIZER_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
    ShardInfo,
    folder_digest,
    write_manifest,
)
from gaguide.data.format.pieces import Piece, read_pieces
from gaguide.data.format.shards import Document, open_shard, shard_name
from gaguide.data.format.tokenizer import vocabulary_size
from gaguide.data.overlap.decontaminate import LIST_FILE
from gaguide.errors import Fault, UserError
from gaguide.files import hash_file, sync_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def assemble_shards(build: PreparedBuild, spec: EncodingSpec) -> Manifest:
    """Number the shards of all parts, whose pieces exist; write the tokenizer and, last, the manifest.

    Raises a `UserError` if no document could be used.
    """
    output = build.request.output
    pieces = [piece for part in build.parts for piece in read_pieces(spec.folder, part.index)]
    dropped: Counter[str] = Counter()
    for piece in pieces:
        dropped.update(piece.dropped)
    if not any(piece.documents for piece in pieces):
        raise UserError(_no_document(build.source, dropped))
    _check_dropped(build, dropped, sum(piece.documents for piece in pieces))
    splits = {
        TRAIN: _number_train_shards(output, pieces, spec),
        VALIDATION: _join_validation(output, pieces, spec, build.request.shard_tokens),
    }
    splits = {split: shards for split, shards in splits.items() if shards}
    save_tokenizer(output, build.tokenizer, spec.folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=build.source.description,
        revision=build.source.revision,
        documents=sum(shard.documents for shards in splits.values() for shard in shards),
        tokens=sum(shard.tokens for shards in splits.values() for shard in shards),
        dropped=dict(sorted(dropped.items())),
        vocab_size=vocabulary_size(build.tokenizer),
        eos_token_id=spec.rows.ids.eos,
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        token_dtype=spec.rows.token_dtype,
        splits=splits,
        tokenizer_files=tuple(
            sorted(path.name for path in (output / TOKENIZER_FOLDER).iterdir() if path.is_file())
        ),
        build_id=build.build_id,
        bos_token_id=spec.rows.ids.bos,
        separator_token_id=spec.rows.ids.separator,
        left_out=dict(build.source.left_out),
        source_identity=describe_identity(build.source.files),
        build_identity=dict(build.identity),
        tokenizer_sha256=folder_digest(output / TOKENIZER_FOLDER),
        marks=spec.rows.marks,
        decontamination=_list_contaminated(output, pieces, spec),
    )
    sync_folder(output)
    write_manifest(output, manifest)
    return manifest


def _list_contaminated(output: Path, pieces: list[Piece], spec: EncodingSpec) -> dict[str, Any]:
    """Write the list of documents with evaluation examples; returns the manifest's entry, if it was asked."""
    decontamination = spec.rows.decontamination
    if decontamination is None:
        return {}
    found = [record for piece in pieces for record in piece.contaminated]
    write_text(output / LIST_FILE, "".join(json.dumps(record) + "\n" for record in found))
    digest = hash_file(output / LIST_FILE)
    return {**decontamination.describe(), "documents": len(found), "list": LIST_FILE, "list_sha256": digest}


def _check_dropped(build: PreparedBuild, dropped: Mapping[str, int], documents: int) -> None:
    """Raise a `UserError` if more rows were dropped than the request allows."""
    rows = {reason: count for reason, count in dropped.items() if reason != Reason.OTHER_MEMBER}
    share = sum(rows.values()) / (sum(rows.values()) + documents)
    if share > build.request.max_dropped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rows.items()))
        problem = f"{share:.0%} of the rows gave no document ({counts}), more than --max-dropped allows"
        remedy = (
            "correct the source; or allow it: the same command with a larger --max-dropped finishes the build"
        )
        raise UserError.of("--max-dropped", problem, remedy, build.request.max_dropped)


def _no_document(source: Source, dropped: Counter[str]) -> Fault:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "it is empty"
    remedy = "name the field that holds the text with --text-field, or give another source"
    return Fault("--source", f"no document could be used ({counts})", remedy, source.description)


def _number_train_shards(output: Path, pieces: list[Piece], spec: EncodingSpec) -> tuple[ShardInfo, ...]:
    made = [piece.shards[TRAIN] for piece in pieces if TRAIN in piece.shards]
    numbered = []
    for index, shard in enumerate(made):
        final = shard_name(TRAIN, index)
        temporary = spec.folder / shard.file
        if temporary.exists():  # otherwise an earlier, interrupted run of this step has renamed it
            temporary.replace(output / final)
        numbered.append(dataclasses.replace(shard, file=final))
    return tuple(numbered)


def _join_validation(
    output: Path, pieces: list[Piece], spec: EncodingSpec, shard_tokens: int
) -> tuple[ShardInfo, ...]:
    """Each piece has few held-out documents: join them into shards of the usual size."""
    infos = []
    for index, documents in enumerate(_batches(_validation_documents(pieces, spec), shard_tokens)):
        path = output / shard_name(VALIDATION, index)
        infos.append(spec.write(path, documents))
    return tuple(infos)


def _validation_documents(pieces: list[Piece], spec: EncodingSpec) -> Iterator[Document]:
    for piece in pieces:
        info = piece.shards.get(VALIDATION)
        if info is not None:
            shard = open_shard(spec.folder / info.file, info, spec.tokenizer_fingerprint)
            yield from shard.documents()


def _batches(documents: Iterator[Document], shard_tokens: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    tokens = 0
    for document in documents:
        if batch and tokens + len(document.ids) > shard_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(document)
        tokens += len(document.ids)
    if batch:
        yield batch


def save_tokenizer(output: Path, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> None:
    """Write the tokenizer's folder of a folder of shards, as a whole; `scratch` is on the same disk."""
    final = output / TOKENIZER_FOLDER
    if final.is_dir():
        return
    temporary = scratch / ".tokenizer"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    temporary.replace(final)
