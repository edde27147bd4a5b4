"""Build a folder of shards from a source, in parallel; an interrupted build resumes where it stopped.

    source ──split──▶ parts ──encode──▶ pieces (in FOLDER/.build) ──assemble──▶ shards, tokenizer, manifest

Every step is a function of the request alone and every file is written atomically, so a build that was killed
and restarted, with any number of workers, ends with the same bytes.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from gaguide.data.build.assemble import assemble_shards
from gaguide.data.build.chat import ChatRenderer
from gaguide.data.build.documents import read_span
from gaguide.data.build.encode import EncodingSpec, Report
from gaguide.data.build.encode_row import RowEncoder, row_bytes
from gaguide.data.build.identity import stamp
from gaguide.data.build.parts import Part
from gaguide.data.build.request import (
    BuildRequest,
    PreparedBuild,
    Progress,
    check_request,
    describe_differences,
    prepare_build,
)
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.workers import encode_in_processes
from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.manifest import Manifest, is_complete, read_manifest
from gaguide.data.format.pieces import read_pieces
from gaguide.data.format.tokenizer import vocabulary_size
from gaguide.errors import FaultKind, UserError
from gaguide.files import write_text

LOCK_FILE = ".lock"
_SAMPLE_DOCUMENTS, _SAMPLE_BYTES = 100, 100_000
_BUSY = "another build is writing to this folder"

PartEncoder = Callable[[Iterable[Part], EncodingSpec, Report], None]
"""Encodes parts somewhere: in this process, in worker processes or in an MPI pool."""


def build_shards(
    request: BuildRequest,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    encoder: PartEncoder | None = None,
) -> Manifest:
    """Make `request.output` a complete folder of shards, unless it is one already, and return its manifest.

    `encoder` encodes the parts; None uses `request.workers` processes of this machine. Raises a `UserError`,
    of kind `BUSY` if another build is writing to the folder.
    """
    check_request(request)
    with build_lock(request.output):
        _check_no_part_is_running(request.output)
        build = prepare_build(request, on_progress)
        manifest = start_build(build, build.parts)
        if manifest is not None:
            return manifest
        encode_parts(build, build.parts, on_progress, encoder)
        return finish_build(build, on_progress)


@contextmanager
def build_lock(
    output: Path, name: str = LOCK_FILE, seconds: float = 0, problem: str = _BUSY
) -> Iterator[None]:
    """Hold a lock file of the folder `output`.

    Raises a `UserError` of kind `BUSY` with `problem` if another process holds it for longer than `seconds`.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(output / name, timeout=seconds):
            yield
    except Timeout:
        remedy = "wait for it, or give another --output"
        raise UserError.of("--output", problem, remedy, str(output), FaultKind.BUSY) from None


def _check_no_part_is_running(output: Path) -> None:
    """Raise a fault of kind `BUSY` if a task that builds a part holds its own lock."""
    for path in output.glob(f"{LOCK_FILE}-part-*"):
        with build_lock(output, path.name):
            pass


def start_build(build: PreparedBuild, mine: Iterable[Part]) -> Manifest | None:
    """Start or resume the build of the parts `mine`; the manifest if the whole folder is complete already."""
    output, folder = build.request.output, build.piece_folder
    if is_complete(output):
        manifest = check_same_build(output, build)
        shutil.rmtree(folder, ignore_errors=True)  # left by a kill right after the manifest was written
        return manifest
    _start_or_resume(build, mine)
    return None


def encode_parts(
    build: PreparedBuild,
    parts: Iterable[Part],
    on_progress: Callable[[Progress], None],
    encoder: PartEncoder | None = None,
) -> None:
    """Write the pieces of `parts` that do not exist yet."""
    parts = tuple(parts)
    spec = _encoding_spec(build)
    is_fast = spec.rows.encoder.fast and spec.rows.chat is None
    name = "tiktoken" if is_fast else "the Hugging Face tokenizer"
    on_progress(Progress(f"encoding with {name}"))
    total = sum(part.weight for part in parts)
    before = [pieces[-1] for part in parts if (pieces := read_pieces(spec.folder, part.index))]
    done = np.array([sum(piece.rows for piece in before), sum(piece.bytes for piece in before)])

    def report(documents: int, size: int) -> None:
        done[:] += (documents, size)
        on_progress(Progress("encoding", int(done[0]), int(done[1]), total))

    report(0, 0)
    encode = encoder or partial(encode_in_processes, workers=build.request.workers)
    encode(parts, spec, report)


def finish_build(build: PreparedBuild, on_progress: Callable[[Progress], None]) -> Manifest:
    """Assemble the folder of shards from the pieces of all parts, and return its manifest."""
    on_progress(Progress("finishing"))
    _check_unchanged(build)
    manifest = assemble_shards(build, _encoding_spec(build))
    shutil.rmtree(build.piece_folder)
    return manifest


def check_same_build(output: Path, build: PreparedBuild) -> Manifest:
    """The manifest of a complete folder; `UserError` if another request or other content made it."""
    manifest = read_manifest(output)
    if manifest.build_id == build.build_id:
        return manifest
    why = describe_differences(manifest.build_identity, build.identity)
    problem = f"the folder already contains other shards (of {manifest.source}): {why}"
    raise UserError.of("--output", problem, "give another --output", str(output))


def _start_or_resume(build: PreparedBuild, mine: Iterable[Part]) -> None:
    """Create the folder of the pieces, or resume a build of the same request there.

    Only incomplete files of the parts `mine` are deleted: other parts may be written at this moment.
    """
    output, folder = build.request.output, build.piece_folder
    state = folder / "request.json"
    identity = {"build_id": build.build_id, "parts": len(build.parts), "identity": build.identity}
    if state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        if before != identity:
            why = describe_differences(before.get("identity", {}), build.identity)
            problem = (
                f"the folder contains an unfinished build of another source, or with other options: {why}"
            )
            remedy = "finish it with the same source and options, or give another --output"
            raise UserError.of("--output", problem, remedy, str(output))
        for part in mine:
            for leftover in folder.glob(f".tmp-*-part-{part.index:05d}-*"):
                leftover.unlink(missing_ok=True)
        return
    others = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if others:
        problem = f"the folder is not empty (it contains {others[0]})"
        raise UserError.of("--output", problem, "give a new or an empty folder", str(output))
    folder.mkdir(exist_ok=True)
    write_text(state, json.dumps(identity))


def _check_unchanged(build: PreparedBuild) -> None:
    """Raise a `UserError` if a file of this machine has changed since the build was prepared."""
    changed = [
        file.url
        for file, before in zip(build.source.files, build.stamps)
        if before is not None and stamp(file) != before
    ]
    if changed:
        problem = f"changed while it was read ({len(changed)} of {len(build.source.files)} files)"
        remedy = "build again into another --output, from files that do not change"
        raise UserError.of("--source", problem, remedy, changed[0])


def _encoding_spec(build: PreparedBuild) -> EncodingSpec:
    request, tokenizer = build.request, build.tokenizer
    return EncodingSpec(
        folder=build.piece_folder,
        rows=RowEncoder(
            encoder=DocumentEncoder(tokenizer, _sample(build.parts, request.fields)),
            ids=build.ids,
            token_dtype="uint16" if vocabulary_size(tokenizer) <= 2**16 else "uint32",
            fields=request.fields,
            chat=None if build.template is None else ChatRenderer(tokenizer, build.template),
            decontamination=request.decontamination,
            marks=request.marks,
        ),
        tokenizer_fingerprint=build.fingerprint,
        validation_fraction=build.validation_fraction,
    )


def _sample(parts: tuple[Part, ...], fields: RowFields) -> list[str]:
    """The first documents of the source, on which the fast encoder is checked."""
    spans = itertools.islice((span for part in parts for span in part.spans), _SAMPLE_DOCUMENTS)
    rows = (row_bytes(row) for span in spans for row in read_span(span, fields))
    documents = (row for row in rows if row)
    return [
        row[:_SAMPLE_BYTES].decode("utf-8", errors="ignore")
        for row in itertools.islice(documents, _SAMPLE_DOCUMENTS)
    ]
