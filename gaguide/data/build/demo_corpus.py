"""Shards of the embedded corpus (see `python_reference`), built where they are missing."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from filelock import FileLock

from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data.build.build import build_shards
from gaguide.data.build.identity import source_digest
from gaguide.data.build.python_reference import (
    EMBEDDED_DESCRIPTION,
    EMBEDDED_VOCABULARY,
    is_embedded_source,
    train_embedded_tokenizer,
)
from gaguide.data.build.request import SOURCE_CONTENT, BuildRequest
from gaguide.data.build.sources import find_source
from gaguide.data.format.manifest import MANIFEST_FILE, TOKENIZER_FOLDER, is_complete, read_manifest


def embedded_folder(cache: Path) -> Path:
    """Where a cache keeps the embedded corpus: a folder for each Python and text.

    With one folder for all, a run with one Python would replace shards that a run with another is reading.
    """
    return cache / f"embedded-{platform.python_version()}-{_text_digest()[:8]}"


def _text_digest() -> str:
    """SHA-256 of the documents: distributions may change them without changing Python's version."""
    return source_digest(find_source([EMBEDDED_SHARDS], None, None).files)


def build_embedded_corpus(folder: Path, vocab_size: int = EMBEDDED_VOCABULARY) -> Path:
    """Make `folder` a complete folder of shards of the embedded corpus, unless it is one; returns `folder`.

    Every rank may call it at the same time: one builds, the others wait. Shards of the embedded corpus of
    another Python, or with another vocabulary size, are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".embedded.lock"):
        if is_complete(folder):
            manifest = read_manifest(folder)
            digest = _text_digest()
            stated = manifest.build_identity.get(SOURCE_CONTENT, digest)  # older folders state none
            found = (manifest.source, manifest.vocab_size, stated)
            if found == (EMBEDDED_DESCRIPTION, vocab_size, digest):
                return folder
            if is_embedded_source(manifest.source):
                _remove_shards(folder)
        tokenizer_folder = folder / ".trained"
        train_embedded_tokenizer(vocab_size).save_pretrained(tokenizer_folder)
        build_shards(BuildRequest((EMBEDDED_SHARDS,), folder, str(tokenizer_folder)))
        shutil.rmtree(tokenizer_folder)
    return folder


def _remove_shards(folder: Path) -> None:
    """Remove the files that the manifest names, and the manifest last: after a kill this can be repeated."""
    for shard in (shard for shards in read_manifest(folder).splits.values() for shard in shards):
        (folder / shard.file).unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    (folder / MANIFEST_FILE).unlink()
