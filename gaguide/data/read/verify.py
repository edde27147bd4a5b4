"""Compare a folder of shards with its manifest, byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gaguide.data.format.manifest import TOKENIZER_FOLDER, Manifest, ShardInfo, folder_digest, read_manifest
from gaguide.data.format.shards import DamagedShardError, content_digest, open_shard
from gaguide.data.format.tokenizer import load_tokenizer, tokenizer_fingerprint
from gaguide.errors import UserError
from gaguide.files import expand_home, hash_file
from gaguide.log import SlowWork


@dataclass(frozen=True)
class Finding:
    """One file that is wrong."""

    file: str
    """Name of the file or folder."""
    problem: str
    """The fault; begins with missing, truncated, damaged or foreign."""


def verify(folder: Path | str) -> Iterator[tuple[str, Finding | None]]:
    """Check each file of a folder or an address; yield its name and a finding, or None if it is right.

    Says how far it is if it takes longer than five seconds. Raises a `UserError` if the manifest cannot be
    read.
    """
    is_address = "://" in str(folder)
    found = _verify_address(str(folder)) if is_address else _verify_folder(expand_home(folder))
    with SlowWork(f"{folder}: comparing files with the manifest, done") as work:
        for number, each in enumerate(found, start=1):
            yield each
            work.done(number)


def _verify_address(address: str) -> Iterator[tuple[str, Finding | None]]:
    """Fetch every file again, one at a time: a host's cache says nothing about the files at the address."""
    from gaguide.data.read.cache import ShardCache
    from gaguide.data.read.remote import RemoteFolder

    with tempfile.TemporaryDirectory(prefix="gaguide-verify-") as scratch:
        cache = ShardCache(Path(scratch), limit_bytes=2**62)
        remote = RemoteFolder(address, cache)
        for info in (shard for shards in remote.manifest.splits.values() for shard in shards):
            try:
                remote.open(info)
            except UserError as error:
                yield info.file, Finding(info.file, error.faults[0].problem)
            else:
                yield info.file, None
            cache.path(info).unlink(missing_ok=True)
        yield TOKENIZER_FOLDER, check_tokenizer(remote.tokenizer_folder, remote.manifest)


def _verify_folder(folder: Path) -> Iterator[tuple[str, Finding | None]]:
    manifest = read_manifest(folder)
    named = [shard for shards in manifest.splits.values() for shard in shards]
    for shard in named:
        yield shard.file, _check_shard(folder, shard, manifest)
    for path in sorted(folder.glob("*.arrow")):
        if path.name not in {shard.file for shard in named}:
            yield path.name, Finding(path.name, "foreign: not named in the manifest")
    yield TOKENIZER_FOLDER, check_tokenizer(folder / TOKENIZER_FOLDER, manifest)


def _check_shard(folder: Path, info: ShardInfo, manifest: Manifest) -> Finding | None:
    path = folder / info.file
    try:
        shard = open_shard(path, info, manifest.tokenizer_fingerprint)
        if hash_file(path) == info.sha256:
            return None
        content = content_digest(shard.tokens, np.asarray(shard.offsets, np.int64), shard.marks)
    except DamagedShardError as error:
        return Finding(info.file, str(error))
    if content == info.content:
        return Finding(info.file, "damaged: bytes around the tokens differ (checksum)")
    return Finding(info.file, "damaged: its tokens differ from those that were written (checksum)")


def check_tokenizer(folder: Path, manifest: Manifest) -> Finding | None:
    """What is wrong with the tokenizer in `folder` as that of a manifest's shards; None if it is right."""
    if not folder.is_dir():
        return Finding(TOKENIZER_FOLDER, "missing")
    if manifest.tokenizer_sha256 and folder_digest(folder) == manifest.tokenizer_sha256:
        return None
    # Written or re-saved by another version: compare the meaning, not the bytes.
    try:
        found = tokenizer_fingerprint(load_tokenizer(folder))
    except UserError as error:
        return Finding(TOKENIZER_FOLDER, f"damaged: {error.faults[0].problem}")
    if found != manifest.tokenizer_fingerprint:
        return Finding(TOKENIZER_FOLDER, "foreign: not the tokenizer that made these shards")
    return None
