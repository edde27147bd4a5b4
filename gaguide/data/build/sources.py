"""The values of `--source`, and the files that they stand for.

A source is the embedded corpus, a file, a folder, a glob, any fsspec address, or a data set on the hub. Hub
data sets are read file by file at a pinned commit; code from a repository is never run.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gaguide.errors import Fault, FaultCollector, UserError, first_line, suggestion

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# In order of preference where a folder contains several kinds, such as a data set and a README.txt.
_KINDS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.xz", "_data.xz"),
    "text": (".txt", ".text"),
}
_KNOWN = "Parquet, JSONL (plain, .gz, .zst, .bz2), text (.txt, one document a file) and tar archives of text"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    url: str
    """Local path or fsspec address."""
    name: str
    """Name that identifies the file within the source, wherever this lies."""
    kind: str
    """"parquet", "jsonl", "text", "tar" or "embedded"."""
    compression: str | None
    """"gzip", "zstd", "bz2", or None."""
    bytes: int
    """Size as stored."""


@dataclass(frozen=True)
class Span:
    """A range of one file."""

    file: SourceFile
    """The file."""
    first: int = 0
    """First row of a Parquet file, or first byte of plain JSONL."""
    end: int | None = None
    """Row or byte after the last; None is the end of the file."""
    rows: int | None = None
    """Maximum number of rows to read; None reads all."""
    weight: int = 0
    """Expected bytes of text."""


@dataclass(frozen=True)
class Source:
    """The files of all `--source` values."""

    description: str
    """What the manifest records as the source."""
    revision: str | None
    """Commits of hub data sets; None for other sources."""
    files: tuple[SourceFile, ...]
    """The files, in order."""


def find_source(names: Iterable[str], split: str | None, revision: str | None) -> Source:
    """Resolve `--source` values; one `UserError` lists all that cannot be resolved."""
    names = list(names)
    files: list[SourceFile] = []
    commits: list[str] = []
    descriptions: list[str] = []
    with FaultCollector() as faults:
        for name in names:
            with faults.catching():
                if not _is_path_or_address(name) and _HUB_ID.fullmatch(name) and _kind(name) is None:
                    found, commit = _hub_files(name, split or "train", revision)
                    commits.append(commit)
                    descriptions.append(f"{name} (split {split or 'train'})")
                else:
                    found = _local_or_remote(name)
                    descriptions.append(_describe(name))
                files += found
        if not commits and not faults:
            faults.add(*_hub_only_options(split, revision))
    return Source(", ".join(descriptions), ", ".join(commits) or None, tuple(files))


def _is_path_or_address(name: str) -> bool:
    return name == EMBEDDED or "://" in name or glob.has_magic(name) or Path(name).exists()


def _hub_only_options(split: str | None, revision: str | None) -> Iterable[Fault]:
    for option, value in (("--split", split), ("--revision", revision)):
        if value is not None:
            remedy = "omit it, and choose files by a glob such as 'FOLDER/train-*.parquet'"
            yield Fault(option, "applies to data sets on the hub only", remedy, value)


def _describe(name: str) -> str:
    if name == EMBEDDED:
        from gaguide.data.build.python_reference import EMBEDDED_DESCRIPTION

        return EMBEDDED_DESCRIPTION
    # Only the name of local paths, since their folder differs between machines.
    return name if "://" in name else Path(name).name or name


def _local_or_remote(name: str) -> list[SourceFile]:
    if name == EMBEDDED:
        return [SourceFile(EMBEDDED, EMBEDDED, EMBEDDED, None, 0)]
    if "://" in name:
        return _remote(name)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    paths = [name] if Path(name).is_file() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (absolute patterns too)
    paths = [path for path in paths if Path(path).is_file()]
    if not paths:
        remedy = (
            "give existing files, a folder, a quoted glob, a data set on the hub (OWNER/NAME), or 'embedded'"
        )
        raise UserError(Fault("--source", "file or folder does not exist", remedy, name))
    return [_source_file(path, Path(path).name, Path(path).stat().st_size) for path in paths]


def _of_folder(folder: Path) -> list[SourceFile]:
    by_kind: dict[str, list[SourceFile]] = {}
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        kind = _kind(path.name)
        if kind and not any(part.startswith(".") for part in relative.parts):
            found = _source_file(str(path), relative.as_posix(), path.stat().st_size)
            by_kind.setdefault(kind, []).append(found)
    for kind in _KINDS:
        if kind in by_kind:
            return by_kind[kind]
    raise UserError(
        Fault("--source", "the folder contains no file of a known kind", f"known: {_KNOWN}", str(folder))
    )


def _remote(address: str) -> list[SourceFile]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        paths = sorted(filesystem.glob(path)) if glob.has_magic(path) else [path]
        sizes = [int(filesystem.info(each)["size"] or 0) for each in paths]
    except (OSError, ValueError, ImportError) as error:
        remedy = "check the address, the connection and the credentials of that store"
        raise UserError(Fault("--source", f"cannot be opened ({error})", remedy, address)) from None
    if not paths:
        raise UserError(Fault("--source", "does not exist", "check the address", address))
    urls = [filesystem.unstrip_protocol(each) for each in paths]
    return [_source_file(url, url.rsplit("/", 1)[-1], size) for url, size in zip(urls, sizes)]


def _hub_files(name: str, split: str, revision: str | None) -> tuple[list[SourceFile], str]:
    """Files of a hub data set's split at one commit, and that commit."""
    import datasets
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=20).sha or ""
        builder = datasets.load_dataset_builder(name, revision=commit)
    except Exception as error:  # the hub's clients raise errors of their transport
        reason = first_line(error)
        remedy = (
            "check the name, --revision and the connection; without one, copy the data set's files to this "
            "machine and give their folder"
        )
        problem = f"is not a local path, and cannot be loaded from the hub ({type(error).__name__}: {reason})"
        raise UserError(Fault("--source", problem, remedy, name)) from None
    by_split = {str(key): list(urls) for key, urls in (builder.config.data_files or {}).items()}
    if split not in by_split:
        raise UserError(Fault("--split", f"is not a split of {name}", suggestion(split, by_split), split))
    found = [file for url in by_split[split] for file in _remote(url)]
    return found, commit


def _kind(name: str) -> str | None:
    bare = _without_compression(name) if _compression(name) else name
    for kind, endings in _KINDS.items():
        if name.lower().endswith(endings) or (kind != "tar" and bare.lower().endswith(endings)):
            return kind
    return None


def _compression(name: str) -> str | None:
    return _COMPRESSIONS.get(Path(name).suffix.lower())


def _without_compression(name: str) -> str:
    return name[: -len(Path(name).suffix)]


def _source_file(url: str, name: str, size: int) -> SourceFile:
    kind = _kind(name)
    if kind is None:
        raise UserError(Fault("--source", "is a file of unknown kind", f"known: {_KNOWN}", url))
    # tarfile detects the compression of an archive.
    return SourceFile(url, name, kind, None if kind == "tar" else _compression(name), size)
