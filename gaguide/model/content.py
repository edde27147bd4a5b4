"""Content of a model's folder: the one rule by which runs, evaluations and studies identify it.

Identity is content, so a folder may be moved, copied or spelt otherwise. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.errors import Fault
from gaguide.files import hash_file, hash_parts

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file of an adapter's settings: a folder with it holds no whole model."""
MODEL_FOLDER = "model"
"""Folder of a run with its exported model."""
ADAPTER_FOLDER = "adapter"
"""Folder of a run's adapters, where it has trained them; its folder `model` has them merged."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
_OTHER_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
CRATE = "ro-crate-metadata.json"
"""Describes the other files of a folder (RO-Crate)."""
_IMMATERIAL = {
    CRATE, "training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt",
}  # fmt: skip
"""Files on which no output depends; all but the first are of transformers' Trainer."""
_WHOLE_BYTES = 512 << 20
_PARTS, _PART_BYTES = 64, 1 << 20


@dataclass(frozen=True)
class FileContent:
    """The content of one file of a model."""

    name: str
    """Name within the folder."""
    size: int
    """Bytes."""
    sha256: str
    """Of all bytes of a file up to 512 MiB; of 64 parts of 1 MiB, spread over it evenly, for a larger one."""
    is_sampled: bool
    """Whether only parts were hashed."""
    changed: int
    """Time of the last change, in nanoseconds: not content, but evidence where parts were hashed."""


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, by name."""
    return _files(folder, _WEIGHT_SUFFIXES)


def model_files(folder: Path) -> list[Path]:
    """Weights, configuration and tokenizer: every file that decides a model's output, by name."""
    return _files(folder, (*_WEIGHT_SUFFIXES, *_OTHER_SUFFIXES))


def read_content(path: Path) -> FileContent:
    """The content of a file of a model."""
    found = path.stat()
    if found.st_size <= _WHOLE_BYTES:
        return FileContent(path.name, found.st_size, hash_file(path), False, found.st_mtime_ns)
    last = found.st_size - _PART_BYTES
    with path.open("rb") as file:
        digest = hash_parts(file, ((last * part // (_PARTS - 1), _PART_BYTES) for part in range(_PARTS)))
    return FileContent(path.name, found.st_size, digest, True, found.st_mtime_ns)


def adapter_fault(field: str, name: str) -> Fault:
    """The fault of a folder that holds an adapter where a whole model is needed."""
    remedy = (
        "give a whole model: RUN/model of the run that trained it, or merge it (gaguide checkpoint export "
        "RUN, or merge_and_unload() of PEFT)"
    )
    return Fault(field, "is the folder of an adapter (PEFT), not of a whole model", remedy, name)


def file_record(path: Path) -> dict[str, Any]:
    """The content of a file of a model as plain JSON.

    `how` says whether the file was hashed whole; where it was not, its size and time of change count too.
    """
    one = read_content(path)
    if not one.is_sampled:
        return {"name": one.name, "sha256": one.sha256, "how": "whole"}
    return {
        "name": one.name, "sha256": one.sha256, "how": "sampled", "size": one.size, "changed": one.changed,
    }  # fmt: skip


FileRecord = Callable[[Path], dict[str, Any]]
"""The content of a file of a model as plain JSON: `file_record`, or one with a memory."""


def folder_record(folder: Path, record: FileRecord = file_record) -> dict[str, Any]:
    """The content of a model's folder as plain JSON; `record` gives that of a file."""
    return {"files": [record(path) for path in model_files(folder)]}


def other_files(recorded: Mapping[str, Any] | None, folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Names of the files in which a model's folder, whose record is `now`, differs from what is recorded.

    Empty also where that is unknown: for a hub's model or one in memory, for records of older versions, and
    for a folder without weights. For files that were hashed in parts the time of change does not
    count: a copy is the same model.
    """
    if not recorded or "files" not in recorded or not weight_files(folder):
        return []
    before, after = _by_name(recorded["files"]), _by_name(now["files"])
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def same_content(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two records of a model (`folder_record`, or the name and commit of a hub's) are of the same
    content. Times of change do not count: a copy is the same model."""
    if not first or not second or not ("files" in first and "files" in second):
        return first == second
    return _by_name(first["files"]) == _by_name(second["files"])


def _by_name(files: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: {key: one[key] for key in one if key != "changed"} for one in files}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix in suffixes and path.name not in _IMMATERIAL)
    return sorted(path for path in found if path.is_file())
