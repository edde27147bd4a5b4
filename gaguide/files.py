"""Atomic writes, durable renames and file hashes.

`replacing` and the `write_*` functions write to a temporary file in the target's folder, fsync it and rename
it over the target. A reader, also after a crash, sees either the old state or the complete new file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from gaguide.errors import Fault, LoneError, UserError, first_line, mask_credentials

T = TypeVar("T")


def local_folder(path: str | Path, field: str) -> Path:
    """`path` with `~` expanded, for output; `UserError` for an address, which would become a local folder."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(path))
    if scheme:
        problem = f"is an address ({scheme[1]}:), and output is written to file systems only"
        remedy = "give a local folder or one of a mounted file system, and copy it from there"
        raise UserError.of(field, problem, remedy, str(path))
    return expand_home(path)


def output_folder(path: str | Path, field: str) -> Path:
    """`path` as a folder for output; raises a `UserError` if it cannot be made or written to.

    Writes nothing.
    """
    folder = local_folder(path, field)
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError.of(
            field, f"cannot be created ({error})", "choose another folder", str(path)
        ) from None
    if not existing.is_dir():
        problem = "is a file" if existing == folder else f"lies below {existing}, which is a file"
        raise UserError.of(field, problem, "choose a folder", str(path))
    if not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written to" if existing == folder else f"cannot be created in {existing}"
        raise UserError.of(field, problem, "choose another folder", str(path))
    return folder


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def disk_fault(error: OSError) -> tuple[str, str]:
    """The reason why a file could not be written, with its name, and the first part of the remedy."""
    reason, path = error.strerror or str(error), error.filename2 or error.filename
    if error.errno in _NO_SPACE:
        return reason, "make room"
    return (f"{reason}: {path}" if path else reason), "correct this"


@contextmanager
def disk_errors(place: str | Path = "a file") -> Iterator[None]:
    """Inside, an `OSError` for want of space or of access is raised as a `LoneError` that names the file.

    `place` is named where the error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE + _NO_ACCESS:
            raise
        path = error.filename2 or error.filename or place
        full = error.errno in _NO_SPACE
        remedy = "make room" if full else "allow it, or choose another place"
        problem = f"cannot be {'written' if full else 'used'} ({error.strerror})"
        raise LoneError(Fault(str(path), problem, f"{remedy}, and start the same command again")) from None


def expand_home(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` expanded; unchanged where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end of the block, fsync it and rename it.

    If the block raises, the temporary file is deleted and `path` stays as it was. A killed process leaves the
    temporary file behind; its name starts with ".tmp-" and nothing reads it.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden path, for the block to make a folder there, which then takes the place of `path`.

    If the block raises, `path` stays as it was. A kill at the very end may leave the old and the new folder
    under hidden names, both whole.
    """
    hidden, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (hidden, old):
        shutil.rmtree(leftover, ignore_errors=True)
    yield hidden
    if path.exists():
        path.rename(old)
    hidden.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Atomically replace the file `path` with `content`; if `private`, only its owner can read it."""
    with replacing(path) as temporary:
        if private:
            temporary.touch(mode=0o600)
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Atomically replace the file `path` with `text`, encoded as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_settings(path: Path, text: str) -> None:
    """`write_text` for settings that a later process reads: private where an address has credentials."""
    write_bytes(path, text.encode("utf-8"), private=mask_credentials(text) != text)


def write_json(path: Path, value: Any) -> None:
    """Atomically replace the file `path` with `value` as indented JSON; NaN and infinity become null."""
    write_text(path, json.dumps(without_nonfinite(value), indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file, or it holds something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_record(path: Path, kind: type[T], what: str, remedy: str) -> T:
    """The dataclass `kind` that `write_json` wrote, with the records inside it.

    Raises `UserError` where the file is not `what`, such as "an ablation"; `remedy` says how to get one.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError.of(str(path), f"is not {what} ({first_line(error)})", remedy) from None


def without_nonfinite(value: Any) -> Any:
    """Return `value` with every NaN and infinity replaced by None, because JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(item) for item in value]
    return value


def hash_file(path: Path, flush: bool = False) -> str:
    """Hexadecimal SHA-256 of a file's bytes. With `flush`, this host's writes to it are fsynced first."""
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Hexadecimal SHA-256 of a value as JSON; the order of keys does not matter. `default` is json's."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def hash_parts(file: IO[bytes], parts: Iterable[tuple[int, int]], prefix: bytes = b"") -> str:
    """Hexadecimal SHA-256 of `prefix` and of parts of a file, each an offset and a number of bytes."""
    digest = hashlib.sha256(prefix)
    for offset, length in parts:
        file.seek(offset)
        digest.update(file.read(length))
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that files created or renamed in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path) -> None:
    """Apply `sync_folder` to `folder` and to every folder below it."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)


def folder_size(folder: Path) -> int:
    """Total size in bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
