"""Make shards of a corpus that is tokenised already, without encoding anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gaguide.data.build.assemble import save_tokenizer
from gaguide.data.build.encode import is_held_out
from gaguide.data.build.identity import describe_identity, identify_local, source_digest
from gaguide.data.build.kinds import SourceFile
from gaguide.data.build.request import SHARD_TOKENS, SOURCE_CONTENT, describe_differences
from gaguide.data.exchange.format import ReadOptions
from gaguide.data.exchange.formats import Format, find_format
from gaguide.data.exchange.place import whole_folder
from gaguide.data.format.manifest import (
    SCHEMA_VERSION,
    TOKENIZER_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
    ShardInfo,
    folder_digest,
    is_complete,
    read_manifest,
    write_manifest,
)
from gaguide.data.format.shards import Document, shard_name, write_documents
from gaguide.data.format.tokenizer import (
    EOS,
    DocumentIds,
    document_ids,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of
from gaguide.files import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("uint16", "uint32", "int32", "int64")
_SMALL_TOKENS = 25_000_000


@dataclass(frozen=True)
class ImportRequest:
    """The files and options of an import."""

    train: tuple[str, ...]
    """Files, folders, prefixes or globs of the format."""
    output: Path
    """Folder of the shards."""
    tokenizer: str
    """Folder or hub name of the tokenizer that made the ids."""
    format: str
    """Name of the format."""
    validation: tuple[str, ...] = ()
    """The same for the held-out documents; empty holds out a share of those of `train`."""
    validation_fraction: float | None = None
    """This share; None is 0.005, or 0.05 below 25 million ids, as far as is known before reading."""
    separator: str = EOS
    """End of every document in formats that do not store it: "eos", or the text of a token."""
    column: str | None = None
    """Column of the ids, in formats with columns."""
    joined: bool = False
    """Whether rows are pieces of one stream, which is split at the separator."""
    dtype: str | None = None
    """dtype of the ids, in files that do not store it."""
    shard_tokens: int = SHARD_TOKENS
    """Approximate number of tokens in a shard."""


@dataclass(frozen=True)
class _Prepared:
    """A request whose files, tokenizer and options were found and fit together."""

    request: ImportRequest
    """The request itself."""
    kind: Format
    """Format of the files."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer that made the ids."""
    ids: DocumentIds
    """Ids that begin and end documents."""
    paths: Mapping[str, list[Path]]
    """Files of each split."""
    files: tuple[SourceFile, ...]
    """All of them, with their sizes and content."""
    options: ReadOptions
    """How the format's files are read."""
    fraction: float
    """Share of the documents that is held out."""
    identity: Mapping[str, Any]
    """Identifies the import by content."""

    @property
    def build_id(self) -> str:
        return hash_json(self.identity)


def import_shards(
    request: ImportRequest, on_progress: Callable[[int], None] = lambda tokens: None
) -> Manifest:
    """Make `request.output` a complete folder of shards, unless it is one already; returns its manifest.

    on_progress: called with the number of ids written so far. An interrupted import starts over. Raises a
    `UserError` with every fault of the request, or for files that are not what their names say.
    """
    prepared = _prepare(request)
    if is_complete(request.output):
        manifest = read_manifest(request.output)
        if manifest.build_id != prepared.build_id:
            why = describe_differences(manifest.build_identity, prepared.identity)
            problem = f"the folder already contains other shards (of {manifest.source}): {why}"
            raise UserError.of("--output", problem, "give another --output", str(request.output))
        return manifest
    with whole_folder(request.output) as place:
        splits = _Splits(place, prepared, on_progress)
        for split, paths in prepared.paths.items():
            for document in prepared.kind.read(paths, prepared.options):
                splits.add(split, document)
        infos = splits.finish()
        save_tokenizer(place, prepared.tokenizer, place)
        manifest = _manifest(place, prepared, infos, splits)
        write_manifest(place, manifest)
    return manifest


def _prepare(request: ImportRequest) -> _Prepared:
    kind = tokenizer = ids = None
    paths: dict[str, list[Path]] = {}
    with FaultCollector() as faults:
        kind = faults.attempt(find_format, request.format, "--from")
        tokenizer = faults.attempt(load_tokenizer, request.tokenizer)
        if kind is not None:
            faults.add(*_option_faults(request, kind))
            if not request.train:
                faults.add(Fault("FILES", "must name a file", "give the files of the format"))
            for split, names in ((TRAIN, request.train), (VALIDATION, request.validation)):
                found = [faults.attempt(kind.find, name) for name in names]
                paths[split] = [path for some in found if some for path in some]
        if tokenizer is not None:
            ids = faults.attempt(document_ids, tokenizer, None, request.separator)
            if ids is not None and ids.separator is None:
                remedy = "give the token that ends documents"
                faults.add(Fault("--separator", "must be a token", remedy, request.separator))
    assert kind is not None and tokenizer is not None and ids is not None and ids.separator is not None
    paths = {split: some for split, some in paths.items() if some}
    marks = () if kind.marks_of is None else kind.marks_of([path for some in paths.values() for path in some])
    if marks and request.joined:
        remedy = "omit it, or the column of marks"
        raise UserError.of("--joined", "does not apply to rows whose tokens have marks", remedy)
    options = ReadOptions(
        ids.separator, vocabulary_size(tokenizer), request.column, request.dtype, request.joined, marks
    )
    listed = [path for some in paths.values() for path in some]
    files = tuple(
        identify_local(
            [SourceFile(str(path), path.name, "ids", None, path.stat().st_size) for path in listed]
        )
    )
    fraction = _fraction(request, files)
    identity = {
        SOURCE_CONTENT: source_digest(files),
        "files": {split: len(some) for split, some in paths.items()},
        "--from": request.format,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "--validation-fraction": fraction,
        "--separator": ids.separator if request.joined or not kind.has_boundaries else None,
        "--column": request.column,
        "--joined": request.joined,
        "--dtype": request.dtype,
        "--shard-tokens": request.shard_tokens,
    }
    return _Prepared(request, kind, tokenizer, ids, paths, files, options, fraction, identity)


def _option_faults(request: ImportRequest, kind: Format) -> Iterator[Fault]:
    if not kind.has_columns:
        for option, value in (("--column", request.column), ("--joined", request.joined or None)):
            if value is not None:
                yield Fault(option, f"does not apply to {kind.name}, which has no columns", "omit it", value)
    if request.dtype is not None:
        if request.dtype not in DTYPES:
            yield not_one_of("--dtype", request.dtype, DTYPES)
        if kind.name in ("megatron", "parquet"):
            yield Fault(
                "--dtype", f"does not apply to {kind.name}, which stores it", "omit it", request.dtype
            )
    if request.separator != EOS and kind.has_boundaries and not request.joined:
        problem = f"does not apply to {kind.name}, which stores where documents end"
        yield Fault("--separator", problem, "omit it, or give --joined for rows of blocks", request.separator)
    fraction = request.validation_fraction
    if fraction is not None and request.validation:
        yield Fault("--validation-fraction", "does not apply with --validation", "give one of them", fraction)
    elif fraction is not None and not 0 <= fraction < 1:
        problem = "must be at least 0 and less than 1"
        yield Fault("--validation-fraction", problem, "0.005 is usual", fraction)
    if not 1 <= request.shard_tokens <= 10**9:
        problem, remedy = "must lie between 1 and 1,000,000,000", f"the default is {SHARD_TOKENS}"
        yield Fault("--shard-tokens", problem, remedy, request.shard_tokens)


def _fraction(request: ImportRequest, files: tuple[SourceFile, ...]) -> float:
    if request.validation:
        return 0.0
    if request.validation_fraction is not None:
        return request.validation_fraction
    return 0.05 if sum(file.bytes for file in files) < 2 * _SMALL_TOKENS else 0.005


@dataclass
class _Open:
    """The shard of a split that is being filled."""

    documents: list[Document] = field(default_factory=list)
    """Its documents so far."""
    tokens: int = 0
    """Their tokens."""
    infos: list[ShardInfo] = field(default_factory=list)
    """The split's finished shards."""


class _Splits:
    """Writes documents as shards of their split."""

    def __init__(self, place: Path, prepared: _Prepared, on_progress: Callable[[int], None]) -> None:
        self.place, self.prepared, self.on_progress = place, prepared, on_progress
        self.fingerprint = tokenizer_fingerprint(prepared.tokenizer)
        self.dtype = np.dtype("uint16" if prepared.options.vocab_size <= 2**16 else "uint32")
        self.dropped: Counter[str] = Counter()
        self.number = self.tokens = 0
        self.all_end = self.all_begin = True
        self._open: dict[str, _Open] = {}

    def add(self, split: str, document: Document) -> None:
        """Take one document; a `UserError` for an id that the tokenizer does not have."""
        ids, prepared = document.ids, self.prepared
        self.number += 1
        if not len(ids):
            self.dropped["empty"] += 1
            return
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= prepared.options.vocab_size:
            wrong = lowest if lowest < 0 else highest
            problem = (
                f"document {self.number - 1:,} holds the id {wrong:,}, and the tokenizer's end at "
                f"{prepared.options.vocab_size - 1:,}"
            )
            remedy = "give the tokenizer that made the ids, and the --dtype in which they are stored"
            raise UserError.of("--tokenizer", problem, remedy, prepared.request.tokenizer)
        ids = ids.astype(self.dtype, copy=False)
        if prepared.fraction and is_held_out(ids.astype("<u4").tobytes(), prepared.fraction):
            split = VALIDATION
        self.all_end &= int(ids[-1]) == prepared.ids.separator
        self.all_begin &= int(ids[0]) == prepared.tokenizer.bos_token_id
        current = self._open.setdefault(split, _Open())
        if current.documents and current.tokens + len(ids) > prepared.request.shard_tokens:
            self._write(split, current)
        current.documents.append(replace(document, ids=ids))
        current.tokens += len(ids)

    def finish(self) -> dict[str, tuple[ShardInfo, ...]]:
        """Write the remaining documents and return each split's shards; `UserError` without a document."""
        for split, current in self._open.items():
            if current.documents:
                self._write(split, current)
        if not self._open:
            names = ", ".join(self.prepared.request.train)
            raise UserError.of("FILES", "hold no document", "give files that hold ids", names)
        ordered = sorted(self._open)  # train before validation
        return {split: tuple(self._open[split].infos) for split in ordered}

    def _write(self, split: str, current: _Open) -> None:
        path = self.place / shard_name(split, len(current.infos))
        has_marks = bool(self.prepared.options.marks)
        info = write_documents(path, current.documents, self.dtype, self.fingerprint, has_marks)
        current.infos.append(info)
        self.tokens += current.tokens
        current.documents, current.tokens = [], 0
        self.on_progress(self.tokens)


def _manifest(
    place: Path, prepared: _Prepared, infos: dict[str, tuple[ShardInfo, ...]], splits: _Splits
) -> Manifest:
    request, every = prepared.request, [info for some in infos.values() for info in some]
    names = ", ".join(Path(name).name or name for name in (*request.train, *request.validation))
    ids = prepared.ids
    return Manifest(
        schema_version=SCHEMA_VERSION,
        source=f"{names} ({request.format})",
        revision=None,
        documents=sum(info.documents for info in every),
        tokens=sum(info.tokens for info in every),
        dropped=dict(splits.dropped),
        vocab_size=prepared.options.vocab_size,
        eos_token_id=int(prepared.tokenizer.eos_token_id),
        tokenizer_fingerprint=splits.fingerprint,
        token_dtype=splits.dtype.name,
        splits=infos,
        tokenizer_files=tuple(sorted(path.name for path in (place / TOKENIZER_FOLDER).iterdir())),
        build_id=prepared.build_id,
        bos_token_id=int(prepared.tokenizer.bos_token_id) if splits.all_begin else None,
        separator_token_id=ids.separator if splits.all_end else None,
        source_identity=describe_identity(prepared.files),
        build_identity=dict(prepared.identity),
        tokenizer_sha256=folder_digest(place / TOKENIZER_FOLDER),
        marks=prepared.options.marks,
    )
