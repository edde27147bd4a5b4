"""The manifest of a shard folder: what is in it, made from what, and how to tell that it is whole.

It is written last, so a shard folder is complete if and only if its `manifest.json` exists.
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
from gaguide.files import write_text

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
_FORMAT = "gaguide-shards"


@dataclass(frozen=True)
class ShardInfo:
    """One shard file.

    file: name inside the folder; documents: rows; tokens: token ids, end-of-text ones included;
    sha256: of the file; content: SHA-256 over ids and document ends, whatever wrote the file; bytes: size.
    """

    file: str
    documents: int
    tokens: int
    sha256: str
    content: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds.

    source: what it was made from, in words; revision: the hub commit, else None; documents, tokens: over
    all splits; dropped: reason → documents left out; vocab_size: ids lie in [0, vocab_size);
    token_dtype: "uint16" or "uint32"; tokenizer_files: names in the
    tokenizer's folder; build_id: identifies the request that made it (workers aside).
    """

    schema_version: int
    source: str
    revision: str | None
    documents: int
    tokens: int
    dropped: Mapping[str, int]
    vocab_size: int
    eos_token_id: int
    tokenizer_fingerprint: str
    token_dtype: str
    splits: Mapping[str, tuple[ShardInfo, ...]]
    tokenizer_files: tuple[str, ...] = ()
    build_id: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """Identifies the data: SHA-256 over every split's contents and what the ids mean."""
        identity = {
            "tokenizer": self.tokenizer_fingerprint,
            "eos": self.eos_token_id,
            "splits": {name: [shard.content for shard in shards] for name, shards in self.splits.items()},
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy dtype of the stored token ids."""
        return np.dtype(self.token_dtype)


def is_complete(folder: Path) -> bool:
    """True where `folder` holds a finished set of shards."""
    return (folder / MANIFEST_FILE).is_file()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare `folder` complete."""
    content = {"format": _FORMAT, **asdict(manifest), "fingerprint": manifest.fingerprint}
    write_text(folder / MANIFEST_FILE, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest; `UserError` where there is none or it can't be understood."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(Fault("data", *_why_missing(folder), value=str(folder)))
    return parse_manifest(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest that `text`, found at `where`, states; `UserError` where it can't be understood."""
    try:
        content = json.loads(text)
        if content.pop("format", None) != _FORMAT:
            raise ValueError("not a manifest of gaguide shards")
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            return _from_json(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            Fault(
                "data",
                f"{where} can't be understood ({error})",
                "give a folder that `gaguide data build` made",
                where,
            )
        ) from None
    raise UserError(
        Fault(
            "data",
            f"its shards have schema version {version!r}; this gaguide reads version {SCHEMA_VERSION}",
            "build them again with this gaguide, or install the one that made them",
            where,
        )
    )


def _from_json(content: dict[str, Any]) -> Manifest:
    stated = content.pop("fingerprint")
    splits = {
        name: tuple(ShardInfo(**shard) for shard in shards) for name, shards in content.pop("splits").items()
    }
    files = tuple(content.pop("tokenizer_files", ()))
    if any(Path(name).name != name for name in files):
        raise ValueError("a tokenizer's file lies outside its folder")
    manifest = Manifest(splits=splits, tokenizer_files=files, **content)
    if manifest.token_dtype not in ("uint16", "uint32"):
        raise ValueError(f"token_dtype {manifest.token_dtype!r} is neither uint16 nor uint32")
    if manifest.fingerprint != stated:
        raise ValueError("its fingerprint doesn't belong to its contents: it was edited or damaged")
    return manifest


def _why_missing(folder: Path) -> tuple[str, str]:
    make = f"gaguide data build --source SOURCE --tokenizer TOKENIZER --output {folder}"
    if not folder.is_dir():
        return "no such folder of shards", f"make it: {make}"
    if (folder / ".build").is_dir():
        return "its build has not finished", f"run the same `gaguide data build … --output {folder}` again"
    return f"the folder holds no {MANIFEST_FILE}, so no shards", f"make them: {make}"
