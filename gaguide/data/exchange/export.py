"""Write a folder of shards in another program's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gaguide.data.exchange.format import WriteOptions
from gaguide.data.exchange.formats import Format, find_format
from gaguide.data.exchange.place import whole_folder
from gaguide.data.format.manifest import TOKENIZER_FOLDER, Manifest, ShardInfo
from gaguide.data.format.shards import Document
from gaguide.data.read.blocks import CACHE_BYTES
from gaguide.data.read.folder import ShardFolder, open_folder
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import read_object, write_json

RECORD_FILE = "export.json"


@dataclass(frozen=True)
class Export:
    """Record of an export."""

    format: str
    """Name of the format."""
    shards: str
    """Folder or address of the shards."""
    fingerprint: str
    """Fingerprint of the shards."""
    tokenizer: str
    """Fingerprint of their tokenizer, which lies next to the data."""
    documents: dict[str, int]
    """Number of documents by split."""
    tokens: dict[str, int]
    """Number of ids by split."""
    marks: tuple[str, ...]
    """Marks that were written: those of the shards, unless they were left out."""


def export_shards(
    name: str,
    output: Path,
    to: str,
    without_marks: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Export:
    """Write all splits of the shards at `name` (a path or an address) to the new folder `output`.

    on_progress: called with tokens written and tokens in all. The same command for a complete output does
    nothing. Raises a `UserError` where shards are damaged or the format cannot hold them.
    """
    kind = find_format(to, "--to")
    folder = open_folder(name, CACHE_BYTES)
    manifest = folder.manifest
    marks = () if without_marks else manifest.marks
    splits = {split: infos for split, infos in manifest.splits.items() if infos}
    record = Export(
        to, name, manifest.fingerprint, manifest.tokenizer_fingerprint,
        {split: sum(info.documents for info in infos) for split, infos in splits.items()},
        {split: sum(info.tokens for info in infos) for split, infos in splits.items()},
        marks,
    )  # fmt: skip
    if _is_written(output, record):
        return record
    _check(kind, manifest, marks)
    total, done = sum(record.tokens.values()), 0

    def documents(infos: tuple[ShardInfo, ...]) -> Iterator[Document]:
        nonlocal done
        for info in infos:
            yield from _documents(folder, info, bool(marks))
            done += info.tokens
            on_progress(done, total)

    options = WriteOptions(manifest.dtype, manifest.vocab_size, marks)
    with whole_folder(output) as place:
        for split, infos in splits.items():
            folder.check(infos)
            kind.write(place, split, documents(infos), options)
        folder.wait_for_checksums()
        shutil.copytree(folder.tokenizer_folder, place / TOKENIZER_FOLDER)
        write_json(place / RECORD_FILE, asdict(record))
    return record


def _is_written(output: Path, record: Export) -> bool:
    """Whether the output is that of the same command, wherever the shards were at the time."""
    found = read_object(output / RECORD_FILE)
    wanted = json.loads(json.dumps(asdict(record)))
    return bool({**found, "shards": None} == {**wanted, "shards": None})


def _check(kind: Format, manifest: Manifest, marks: tuple[str, ...]) -> None:
    with FaultCollector() as faults:
        if marks and kind.marks_of is None:
            problem = f"cannot store the marks of these tokens ({', '.join(marks)})"
            remedy = "choose parquet, or leave them out with --without-marks"
            faults.add(Fault("--to", problem, remedy, kind.name))
        if not kind.has_boundaries and manifest.separator_token_id is None:
            problem = "does not store where documents end, and no id marks the end of these documents"
            faults.add(Fault("--to", problem, "choose another format", kind.name))


def _documents(folder: ShardFolder, info: ShardInfo, has_marks: bool) -> Iterator[Document]:
    shard = folder.open(info)
    if has_marks and shard.marks is None:
        problem = f"{info.file} lacks the marks that the manifest names"
        raise UserError.of("SHARDS", problem, "build the folder again", folder.name)
    for document in shard.documents():
        yield document if has_marks else Document(document.ids)
