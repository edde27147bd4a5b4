"""The request of a build, and a prepared build: source found and split into parts, nothing encoded yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data.build.chat import find_template
from gaguide.data.build.identity import source_digest, stamp
from gaguide.data.build.parts import Part, split_into_parts
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.sources import Source, find_source
from gaguide.data.format.manifest import BUILD_FOLDER, MASKED, MAX_MARKS, NO_LOSS, PROMPT
from gaguide.data.format.tokenizer import (
    EOS,
    DocumentIds,
    document_ids,
    load_tokenizer,
    tokenizer_fingerprint,
)
from gaguide.data.overlap.decontaminate import Decontamination
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import hash_json
from gaguide.log import SlowWork, is_first_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_TOKENS = 50_000_000
SOURCE_CONTENT = "content of the source"
"""Name of the source's digest in a build's identity."""
MAX_SPANS = MAX_MARKS - 1
"""Most fields of spans: one mark may be `masked`."""
MAX_DROPPED = 0.5
"""Largest share of dropped rows by default: in some corpora a third of the rows are blank."""
_SMALL_SOURCE_BYTES = 100_000_000


@dataclass(frozen=True)
class BuildRequest:
    """The source and options of a build."""

    sources: tuple[str, ...]
    """Files, folders, globs, fsspec addresses, hub data sets or "embedded"."""
    output: Path
    """Folder of the shards."""
    tokenizer: str | None = None
    """Folder or hub name; None trains one on the embedded corpus, which must then be the source."""
    rows: int | None = None
    """Use only this many rows from the start of the source; None uses all."""
    split: str | None = None
    """Split of a hub data set; None is train."""
    text_field: str = "text"
    """Column or field with the text."""
    validation_fraction: float | None = None
    """Share of the documents that is held out; None is 0.005, or 0.05 for sources under 100 MB."""
    shard_tokens: int = SHARD_TOKENS
    """Approximate number of tokens in a shard."""
    workers: int = 1
    """Number of processes."""
    revision: str | None = None
    """Commit, branch or tag of a hub data set; None is its newest commit."""
    bos: bool | None = None
    """Begin every document with the begin-of-text id; None does so if the tokenizer itself does."""
    separator: str = EOS
    """End of every document: "eos" (end of text), "none", or the text of one token of the tokenizer."""
    max_dropped: float = MAX_DROPPED
    """Share of the rows that may be dropped; a build that drops more fails."""
    spans: tuple[str, ...] = ()
    """Fields of character spans in the text, which are stored as marks of the tokens."""
    chat: str | None = None
    """Field of a conversation, which is rendered by a template instead of a text."""
    template: str | None = None
    """The template, in Jinja; None is the tokenizer's own."""
    decontamination: Decontamination | None = None
    """Evaluation examples that are looked for, and how documents that contain one are handled."""

    @property
    def fields(self) -> RowFields:
        """Fields that are read from each row."""
        return RowFields(self.text_field, self.spans, self.chat)

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of the marks that tokens get, by bit."""
        names = self.spans if self.chat is None else (PROMPT,)
        masks = self.decontamination is not None and self.decontamination.action == "mask"
        return (*names, MASKED) if masks else names


@dataclass(frozen=True)
class Progress:
    """Progress of a build."""

    stage: str
    """Current step, for people."""
    documents: int = 0
    """Documents encoded so far."""
    bytes: int = 0
    """Bytes of text encoded so far."""
    total_bytes: int = 0
    """Bytes of text in the source, estimated from the sizes of its files."""


@dataclass(frozen=True)
class PreparedBuild:
    """A build whose source is found and split; nothing is encoded yet."""

    request: BuildRequest
    """The request."""
    source: Source
    """The files of the source."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer."""
    parts: tuple[Part, ...]
    """The source, split into units of work."""
    validation_fraction: float
    """Share of the documents that is held out."""
    identity: Mapping[str, Any]
    """Everything that determines the shards."""
    ids: DocumentIds
    """Which ids begin and end every document."""
    stamps: tuple[tuple[int, int] | None, ...] = ()
    """Size and modification time of each file when the build was prepared; None for other files."""
    template: str | None = None
    """The chat template, where rows are conversations."""

    @cached_property
    def build_id(self) -> str:
        """SHA-256 of `identity`, to tell a rerun from another request."""
        return hash_json(self.identity)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def piece_folder(self) -> Path:
        """Folder of the pieces until the build is complete."""
        return self.request.output / BUILD_FOLDER


def check_request(request: BuildRequest) -> None:
    """Raise the faults of a request, all at once, and create its output folder."""
    with FaultCollector() as faults:
        if not request.sources:
            remedy = "give files, a folder, a hub data set or 'embedded'"
            faults.add(Fault("--source", "is required", remedy))
        if request.tokenizer is None and request.sources != (EMBEDDED_SHARDS,):
            remedy = "give a folder with a tokenizer, or the name of a model on the hub (gpt2)"
            faults.add(Fault("--tokenizer", "is required", remedy))
        if request.rows is not None and request.rows < 1:
            faults.add(Fault("--rows", "must be at least 1", "omit it to use all rows", request.rows))
        if request.workers < 1:
            remedy = "give the number of cores"
            faults.add(Fault("--workers", "must be at least 1", remedy, request.workers))
        if not 1 <= request.shard_tokens <= 10**9:
            problem, remedy = "must lie between 1 and 1,000,000,000", f"the default is {SHARD_TOKENS}"
            faults.add(Fault("--shard-tokens", problem, remedy, request.shard_tokens))
        fraction = request.validation_fraction
        if fraction is not None and not 0 <= fraction < 1:
            problem = "must be at least 0 and less than 1"
            faults.add(Fault("--validation-fraction", problem, "0.005 is usual", fraction))
        if not 0 <= request.max_dropped <= 1:
            problem, remedy = "must be between 0 and 1", f"the default is {MAX_DROPPED}"
            faults.add(Fault("--max-dropped", problem, remedy, request.max_dropped))
        faults.add(*_mark_faults(request))
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem, remedy = f"cannot be created ({error.strerror})", "give a folder that is writable"
        raise UserError.of("--output", problem, remedy, str(request.output)) from None


def _mark_faults(request: BuildRequest) -> Iterator[Fault]:
    if request.chat is not None and request.spans:
        yield Fault("--spans", "does not apply to conversations", "omit it or --chat", request.spans[0])
    if request.template is not None and request.chat is None:
        yield Fault("--template", "applies to conversations only", "give --chat FIELD as well, or omit it")
    for name in sorted({name for name in request.spans if request.spans.count(name) > 1}):
        yield Fault("--spans", "is given twice", "give each field once", name)
    for name in request.spans:
        if name in NO_LOSS or name == request.text_field:
            yield Fault("--spans", "is a name that gaguide uses itself", "rename the field", name)
    if len(request.spans) > MAX_SPANS:
        problem = f"there are {len(request.spans)}, but a token can have at most {MAX_SPANS}"
        yield Fault("--spans", problem, f"give at most {MAX_SPANS}")


def prepare_build(request: BuildRequest, on_progress: Callable[[Progress], None]) -> PreparedBuild:
    """Find the source, load the tokenizer and split the source into parts; a function of both alone."""
    source, tokenizer = _inputs(request, on_progress)
    stamps = tuple(
        None if file.is_remote or file.kind == EMBEDDED_SHARDS else stamp(file) for file in source.files
    )
    template = None
    with FaultCollector() as faults:
        ids = faults.attempt(document_ids, tokenizer, request.bos, request.separator)
        on_progress(Progress(f"looking at {len(source.files):,} files of the source"))
        with SlowWork("looking at the files of the source", shown=is_first_process()):
            parts = faults.attempt(
                split_into_parts, source, request.fields, request.rows, request.shard_tokens
            )
        if request.chat is not None:
            template = faults.attempt(find_template, tokenizer, request.template)
    assert ids is not None and parts is not None
    if template is not None:
        tokenizer.chat_template = template  # saved with the shards, and so with the model
    fraction = _validation_fraction(request, parts)
    identity = _identity(request, source, tokenizer_fingerprint(tokenizer), fraction, ids)
    identity |= _identity_of_marks(request, template)
    return PreparedBuild(request, source, tokenizer, parts, fraction, identity, ids, stamps, template)


def _inputs(
    request: BuildRequest, on_progress: Callable[[Progress], None]
) -> tuple[Source, PreTrainedTokenizerBase]:
    """Source and tokenizer; the faults of both are raised at once."""
    from gaguide.data.build.python_reference import EMBEDDED_VOCABULARY, train_embedded_tokenizer

    with FaultCollector() as faults:
        on_progress(Progress("finding the files of the source"))
        source = faults.attempt(find_source, request.sources, request.split, request.revision, request.output)
        on_progress(Progress("loading the tokenizer"))
        tokenizer = (
            train_embedded_tokenizer(EMBEDDED_VOCABULARY)
            if request.tokenizer is None
            else faults.attempt(load_tokenizer, request.tokenizer)
        )
    assert source is not None and tokenizer is not None
    return source, tokenizer


def _validation_fraction(request: BuildRequest, parts: tuple[Part, ...]) -> float:
    from gaguide.data.build.python_reference import VALIDATION_FRACTION

    if request.validation_fraction is not None:
        return request.validation_fraction
    if request.sources == (EMBEDDED_SHARDS,):
        return VALIDATION_FRACTION
    return 0.05 if sum(part.weight for part in parts) < _SMALL_SOURCE_BYTES else 0.005


def _identity(
    request: BuildRequest, source: Source, fingerprint: str, fraction: float, ids: DocumentIds
) -> dict[str, Any]:
    """Everything that determines the shards, under the names that users know."""
    return {
        SOURCE_CONTENT: source_digest(source.files),
        "source": source.description,
        "revision": source.revision,
        "tokenizer": fingerprint,
        "--rows": request.rows,
        "--text-field": request.text_field,
        "--validation-fraction": fraction,
        "--shard-tokens": request.shard_tokens,
        "id at the start of documents": ids.bos,
        "id at the end of documents": ids.separator,
    }


def _identity_of_marks(request: BuildRequest, template: str | None) -> dict[str, Any]:
    """Entries of builds with marks; other builds keep the identity that they had before there were marks."""
    identity: dict[str, Any] = {"--spans": list(request.spans)} if request.spans else {}
    if template is not None:
        digest = hashlib.sha256(template.encode()).hexdigest()
        identity |= {"--chat": request.chat, "content of the chat template": digest}
    return identity if request.decontamination is None else identity | request.decontamination.identity


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Differences between the identities of two builds, for people."""
    if not old:
        return "it was built by a version of gaguide that did not record its source"
    changed = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return "; ".join(
        f"the {name} has changed"
        if name.startswith(("content", "tokenizer"))
        else f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in changed
    )
