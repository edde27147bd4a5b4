"""The manifest of a folder of shards: what the shards contain, what they were made from, and their checksums.

It is written last, so a folder of shards is complete if and only if its `manifest.json` exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.errors import Fault, UserError
from gaguide.files import hash_file, hash_json, write_text

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
BUILD_FOLDER = ".build"
"""Subfolder with the state of an unfinished build."""

TRAIN, VALIDATION = "train", "validation"
"""Names of the two splits."""

PROMPT, MASKED = "prompt", "masked"
"""Marks of tokens on which no loss is computed: in conversations, all that the assistant has not written; in
other text, stretches that evaluation examples contain."""
NO_LOSS = (PROMPT, MASKED)
MAX_MARKS = 8
"""A token's marks are the bits of a byte."""

_FORMAT = "gaguide-shards"


@dataclass(frozen=True)
class ShardInfo:
    """One shard file."""

    file: str
    """File name inside the folder."""
    documents: int
    """Number of documents."""
    tokens: int
    """Number of token ids, end-of-text ids included."""
    sha256: str
    """SHA-256 of the file."""
    content: str = ""
    """SHA-256 of the ids and document boundaries, independent of the version of Arrow that wrote the file."""
    bytes: int = 0
    """Size of the file."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of a folder of shards."""

    schema_version: int
    """Version of this format."""
    source: str
    """Description of the text that the shards were made from."""
    revision: str | None
    """Commit of the hub data set; None for other sources."""
    documents: int
    """Number of documents in all splits."""
    tokens: int
    """Number of token ids in all splits."""
    dropped: Mapping[str, int]
    """Number of rows of the source that gave no document, by reason."""
    vocab_size: int
    """Ids lie in [0, vocab_size)."""
    eos_token_id: int
    """The tokenizer's end-of-text id, or the id that ends every document instead of it."""
    tokenizer_fingerprint: str
    """`tokenizer_fingerprint` of the tokenizer that made the ids."""
    token_dtype: str
    """dtype of the stored ids: "uint16" or "uint32"."""
    splits: Mapping[str, tuple[ShardInfo, ...]]
    """Shards of each split, in order."""
    tokenizer_files: tuple[str, ...] = ()
    """File names in the tokenizer's folder."""
    build_id: str = field(default="", compare=False)
    """Identifies the request that made the folder, apart from the number of workers."""
    bos_token_id: int | None = None
    """Id that begins every document; None if there is none."""
    separator_token_id: int | None = None
    """Id that ends every document; None if there is none (in older versions' folders: `eos_token_id`)."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files in the folders of the source that were not read, by reason."""
    source_identity: str = ""
    """How the content of the source was identified."""
    build_identity: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Values whose hash is `build_id`."""
    tokenizer_sha256: str = ""
    """`folder_digest` of the tokenizer's folder."""
    marks: tuple[str, ...] = ()
    """Names of the marks that tokens have, by bit."""
    decontamination: Mapping[str, Any] = field(default_factory=dict)
    """Evaluation examples that were looked for, how they were handled, and the number of documents."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data: SHA-256 of every split's content, the tokenizer and the end-of-text id."""
        identity = {
            "tokenizer": self.tokenizer_fingerprint,
            "eos": self.eos_token_id,
            "splits": {name: [shard.content for shard in shards] for name, shards in self.splits.items()},
        }
        if self.marks:
            identity["marks"] = list(self.marks)
        return hash_json(identity)

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy dtype of the stored ids."""
        return np.dtype(self.token_dtype)


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a complete set of shards."""
    return (folder / MANIFEST_FILE).is_file()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which declares `folder` complete."""
    content = {"format": _FORMAT, **asdict(manifest), "fingerprint": manifest.fingerprint}
    write_text(folder / MANIFEST_FILE, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest; `UserError` if it is missing or invalid."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(_missing_manifest(folder))
    return parse_manifest(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse_manifest(text: str, where: str) -> Manifest:
    """Parse the text of a manifest found at `where`; `UserError` if it is invalid."""
    try:
        content = json.loads(text)
        if content.pop("format", None) != _FORMAT:
            raise ValueError("not a manifest of gaguide shards")
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            return _from_json(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{where} is not a valid manifest ({error})"
        remedy = "give a folder that `gaguide data build` made"
        raise UserError.of("data", problem, remedy, where) from None
    problem = f"its shards have schema version {version!r}; this gaguide reads version {SCHEMA_VERSION}"
    remedy = "rebuild them with this gaguide, or install the version that made them"
    raise UserError.of("data", problem, remedy, where)


def _from_json(content: dict[str, Any]) -> Manifest:
    stated = content.pop("fingerprint")
    splits = {
        name: tuple(ShardInfo(**shard) for shard in shards) for name, shards in content.pop("splits").items()
    }
    files, marks = tuple(content.pop("tokenizer_files", ())), tuple(content.pop("marks", ()))
    if any(Path(name).name != name for name in files):
        raise ValueError("a tokenizer file lies outside its folder")
    manifest = Manifest(splits=splits, tokenizer_files=files, marks=marks, **content)
    if manifest.token_dtype not in ("uint16", "uint32"):
        raise ValueError(f"token_dtype {manifest.token_dtype!r} must be one of uint16, uint32")
    if manifest.fingerprint != stated:
        raise ValueError("its fingerprint does not match its contents: it was edited or damaged")
    return manifest


def _missing_manifest(folder: Path) -> Fault:
    command = f"gaguide data build --source SOURCE --tokenizer TOKENIZER --output {folder}"
    if not folder.is_dir():
        problem, remedy = "folder does not exist", f"build it: {command}"
    elif (folder / BUILD_FOLDER).is_dir():
        problem = "its build has not finished"
        remedy = f"run the same `gaguide data build … --output {folder}` again"
    else:
        problem, remedy = f"folder contains no {MANIFEST_FILE}", f"build the shards: {command}"
    return Fault("data", problem, remedy, str(folder))
