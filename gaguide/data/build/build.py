"""Building a folder of shards out of a source, in parallel, and going on after any interruption.

    source ──plan──▶ parts ──workers──▶ pieces (in FOLDER/.build) ──finish──▶ shards, tokenizer, manifest

Every step is a function of the request alone and every file appears whole or not at all, so a build that was
killed and started again, with any number of workers, ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gaguide.data.build.documents import Reason, read_span
from gaguide.data.build.finish import finish
from gaguide.data.build.parts import Part, plan_parts
from gaguide.data.build.pieces import Job, Report, read_pieces
from gaguide.data.build.sources import EMBEDDED, Source, find_source
from gaguide.data.build.workers import run_parts
from gaguide.data.format.manifest import Manifest, is_complete, read_manifest
from gaguide.data.format.tokenizer import (
    DocumentEncoder,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from gaguide.errors import Fault, UserError
from gaguide.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILD_FOLDER = ".build"
LOCK_FILE = ".lock"
SHARD_TOKENS = 50_000_000
_SMALL_SOURCE_BYTES = 100_000_000
_SAMPLE_DOCUMENTS = 100


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    sources: files, folders, globs, fsspec addresses, hub data sets or "embedded"; tokenizer: folder or hub
    name (None: one trained on the embedded corpus, which must then be the source); rows: take only the first
    rows; split, revision: of hub data sets; validation_fraction: share of documents held out (None: 0.005, or
    0.05 for sources under 100 MB); shard_tokens: about how many tokens a shard has; workers: processes.
    """

    sources: tuple[str, ...]
    output: Path
    tokenizer: str | None = None
    rows: int | None = None
    split: str | None = None
    text_field: str = "text"
    validation_fraction: float | None = None
    shard_tokens: int = SHARD_TOKENS
    workers: int = 1
    revision: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a build is. bytes and total_bytes are of text; the total is estimated from the files' sizes."""

    stage: str
    documents: int = 0
    bytes: int = 0
    total_bytes: int = 0


Runner = Callable[[Iterable[Part], Job, Report], None]
"""Makes the pieces of parts, somewhere."""


@dataclass(frozen=True)
class Work:
    """A build that is planned. fraction: of documents that are held out."""

    request: BuildRequest
    source: Source
    tokenizer: PreTrainedTokenizerBase
    parts: tuple[Part, ...]
    fraction: float
    build_id: str

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def folder_of_pieces(self) -> Path:
        """Where pieces lie until the end."""
        return self.request.output / BUILD_FOLDER


def build_shards(
    request: BuildRequest,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    runner: Runner | None = None,
) -> Manifest:
    """Make `request.output` a complete folder of shards, or find that it is one already.

    runner: makes the pieces; None: `request.workers` processes of this machine.
    """
    from filelock import FileLock, Timeout

    check_request(request)
    try:
        with FileLock(request.output / LOCK_FILE, timeout=0):
            _no_part_is_running(request.output)
            work = plan(request, on_progress)
            finished = begin(work, work.parts)
            if finished is not None:
                return finished
            run(work, work.parts, on_progress, runner)
            return complete(work, on_progress)
    except Timeout:
        raise UserError(_in_use(request.output)) from None


def _in_use(output: Path) -> Fault:
    remedy = "wait for it, or give another --output"
    return Fault("--output", "another build is writing to this folder", remedy, str(output))


def _no_part_is_running(output: Path) -> None:
    """Tasks that each build a part hold a lock of their own for as long as they work."""
    from filelock import FileLock, Timeout

    for path in output.glob(f"{LOCK_FILE}-part-*"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            raise UserError(_in_use(output)) from None


def plan(request: BuildRequest, on_progress: Callable[[Progress], None]) -> Work:
    """What a build has to do: a function of the request and its source alone."""
    on_progress(Progress("looking at the source"))
    source, tokenizer = _inputs(request)
    parts = plan_parts(source, request.text_field, request.rows, request.shard_tokens)
    fraction = _validation_fraction(request, parts)
    build_id = _build_id(request, source, tokenizer_fingerprint(tokenizer), fraction)
    return Work(request, source, tokenizer, parts, fraction, build_id)


def begin(work: Work, mine: Iterable[Part]) -> Manifest | None:
    """Begin or continue the build of the parts `mine`; the manifest where the whole is finished already."""
    output, folder = work.request.output, work.folder_of_pieces
    if is_complete(output):
        manifest = _same_as_finished(output, work.build_id)
        shutil.rmtree(folder, ignore_errors=True)  # a kill right after the manifest leaves it
        return manifest
    _start_or_continue(output, folder, work.build_id, work.parts, mine)
    return None


def run(
    work: Work,
    parts: Iterable[Part],
    on_progress: Callable[[Progress], None],
    runner: Runner | None = None,
) -> None:
    """Make the pieces of `parts` that don't exist yet."""
    parts = tuple(parts)
    job = _job(work)
    on_progress(Progress(f"encoding with {'tiktoken' if job.encoder.fast else 'the Hugging Face tokenizer'}"))
    _run(parts, job, runner or partial(run_parts, workers=work.request.workers), on_progress)


def complete(work: Work, on_progress: Callable[[Progress], None]) -> Manifest:
    """Make a folder of the pieces of all parts."""
    on_progress(Progress("finishing"))
    request = work.request
    manifest = finish(
        request.output,
        work.parts,
        _job(work),
        work.tokenizer,
        work.source,
        request.shard_tokens,
        work.build_id,
    )
    shutil.rmtree(work.folder_of_pieces)
    return manifest


def check_request(request: BuildRequest) -> None:
    """Raise the faults of a request, all at once; make its output folder."""
    faults = []
    if not request.sources:
        faults.append(Fault("--source", "is missing", "give files, a folder, a hub data set or 'embedded'"))
    if request.tokenizer is None and request.sources != (EMBEDDED,):
        remedy = "give a folder with a tokenizer, or a model's name on the hub (gpt2)"
        faults.append(Fault("--tokenizer", "is missing", remedy))
    if request.rows is not None and request.rows < 1:
        faults.append(Fault("--rows", "must be at least 1", "leave it out for all rows", request.rows))
    if request.workers < 1:
        faults.append(Fault("--workers", "must be at least 1", "give the number of cores", request.workers))
    if not 1 <= request.shard_tokens <= 10**9:
        problem = "must lie between 1 and 1,000,000,000"
        faults.append(
            Fault("--shard-tokens", problem, f"the default is {SHARD_TOKENS}", request.shard_tokens)
        )
    if request.validation_fraction is not None and not 0 <= request.validation_fraction < 1:
        problem = "must be at least 0 and less than 1"
        faults.append(Fault("--validation-fraction", problem, "0.005 is usual", request.validation_fraction))
    if faults:
        raise UserError(faults)
    _make_folder(request.output)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "give a folder that can be written"
        raise UserError(Fault("--output", f"can't be made ({error.strerror})", remedy, str(folder))) from None


def _inputs(request: BuildRequest) -> tuple[Source, PreTrainedTokenizerBase]:
    """Source and tokenizer; what is wrong with both is told at once."""
    from gaguide.data.build.python_reference import VOCABULARY_SIZE, train_embedded_tokenizer

    faults: list[Fault] = []
    source: Source | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    try:
        source = find_source(request.sources, request.split, request.revision)
    except UserError as error:
        faults += error.faults
    try:
        if request.tokenizer is None:
            tokenizer = train_embedded_tokenizer(VOCABULARY_SIZE)
        else:
            tokenizer = load_tokenizer(request.tokenizer)
    except UserError as error:
        faults += error.faults
    if source is None or tokenizer is None:
        raise UserError(faults)
    return source, tokenizer


def _validation_fraction(request: BuildRequest, parts: tuple[Part, ...]) -> float:
    from gaguide.data.build.python_reference import VALIDATION_FRACTION

    if request.validation_fraction is not None:
        return request.validation_fraction
    if request.sources == (EMBEDDED,):
        return VALIDATION_FRACTION
    return 0.05 if sum(part.weight for part in parts) < _SMALL_SOURCE_BYTES else 0.005


def _build_id(request: BuildRequest, source: Source, fingerprint: str, fraction: float) -> str:
    """Identifies what is built from what, so that a rerun of the same is told from another request."""
    identity = {
        "files": [(file.name, file.bytes) for file in source.files],
        "source": [source.description, source.revision],
        "tokenizer": fingerprint,
        "rows": request.rows,
        "text_field": request.text_field,
        "validation_fraction": fraction,
        "shard_tokens": request.shard_tokens,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _same_as_finished(output: Path, build_id: str) -> Manifest:
    manifest = read_manifest(output)
    if manifest.build_id == build_id:
        return manifest
    remedy = "give another --output, or remove this folder first"
    problem = f"the folder already holds other shards (of {manifest.source})"
    raise UserError(Fault("--output", problem, remedy, str(output)))


def _start_or_continue(
    output: Path, folder: Path, build_id: str, parts: tuple[Part, ...], mine: Iterable[Part]
) -> None:
    """Begin a build in `folder`, or find one of the same request there.

    What was half written of `mine` is cleared; other parts may be being written at this moment.
    """
    state = folder / "request.json"
    if state.is_file():
        if json.loads(state.read_text(encoding="utf-8")) != {"build_id": build_id, "parts": len(parts)}:
            problem = "the folder holds an unfinished build of another source, or with other options"
            remedy = "finish it with the same options, give another --output, or remove this folder first"
            raise UserError(Fault("--output", problem, remedy, str(output)))
        for part in mine:
            for leftover in folder.glob(f".tmp-*-part-{part.index:05d}-*"):
                leftover.unlink(missing_ok=True)
        return
    strangers = [path.name for path in output.iterdir() if path.name not in (BUILD_FOLDER, LOCK_FILE)]
    strangers = [name for name in strangers if not name.startswith(".")]
    if strangers:
        problem = f"the folder is not empty (it holds {sorted(strangers)[0]})"
        raise UserError(Fault("--output", problem, "give a new or an empty folder", str(output)))
    folder.mkdir(exist_ok=True)
    write_text(state, json.dumps({"build_id": build_id, "parts": len(parts)}))


def _job(work: Work) -> Job:
    request, tokenizer = work.request, work.tokenizer
    vocabulary = vocabulary_size(tokenizer)
    return Job(
        folder=work.folder_of_pieces,
        encoder=DocumentEncoder(tokenizer, _sample(work.parts, request.text_field)),
        eos_token_id=int(tokenizer.eos_token_id),
        token_dtype="uint16" if vocabulary <= 2**16 else "uint32",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        text_field=request.text_field,
        validation_fraction=work.fraction,
    )


def _sample(parts: tuple[Part, ...], text_field: str) -> list[str]:
    """The first documents of the source, on which the fast encoder has to prove itself."""
    sample: list[str] = []
    if parts:
        for row in read_span(parts[0].spans[0], text_field):
            if not isinstance(row, Reason):
                sample.append(row[:100_000].decode("utf-8", errors="ignore"))
            if len(sample) == _SAMPLE_DOCUMENTS:
                break
    return sample


def _run(parts: tuple[Part, ...], job: Job, runner: Runner, on_progress: Callable[[Progress], None]) -> None:
    total = sum(part.weight for part in parts)
    before = [pieces[-1] for part in parts if (pieces := read_pieces(job.folder, part.index))]
    done = np.array([sum(piece.rows for piece in before), sum(piece.bytes for piece in before)])

    def report(documents: int, size: int) -> None:
        done[:] += (documents, size)
        on_progress(Progress("encoding", int(done[0]), int(done[1]), total))

    report(0, 0)
    runner(parts, job, report)
