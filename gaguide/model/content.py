"""What a model's folder contains: the one rule by which runs, evaluations and studies identify it.

Identity is content, so a folder may be moved, copied or spelt otherwise. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gaguide.files import hash_file, hash_parts

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
_OTHER_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_OF_TRAINING = {"training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt"}
"""What transformers' Trainer keeps in a model's folder, on which no output depends."""
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


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix in suffixes and path.name not in _OF_TRAINING)
    return sorted(path for path in found if path.is_file())
