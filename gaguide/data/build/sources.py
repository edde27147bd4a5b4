"""What `--source` may be, and which files it stands for.

A source is the embedded corpus, a file, a folder, a glob, any fsspec address, or a dataset on the hub. Hub
data sets are read file by file at a pinned commit; code from a repository is never run.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gaguide.errors import Fault, UserError, first_line, suggestion

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# In this order of preference where a folder holds several kinds (a data set with a README.txt beside it).
_KINDS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.xz", "_data.xz"),
    "text": (".txt", ".text"),
}
_KNOWN = "Parquet, JSONL (plain, .gz, .zst, .bz2), text (.txt, one document a file) and tar archives of text"


@dataclass(frozen=True)
class SourceFile:
    """One file. url: local path or fsspec address; kind: a key of the readers; bytes: its size as stored."""

    url: str
    name: str
    kind: str
    compression: str | None
    bytes: int


@dataclass(frozen=True)
class Span:
    """A stretch of one file.

    first, end: rows of a Parquet file or bytes of plain JSONL (end None: to its end);
    rows: read no more rows than this (None: all); weight: bytes of text that it is expected to hold.
    """

    file: SourceFile
    first: int = 0
    end: int | None = None
    rows: int | None = None
    weight: int = 0


@dataclass(frozen=True)
class Source:
    """The files of all `--source` values, in order, and what to call them. revision: of the hub, or None."""

    description: str
    revision: str | None
    files: tuple[SourceFile, ...]


def find_source(names: Iterable[str], split: str | None, revision: str | None) -> Source:
    """Resolve `--source` values; one `UserError` lists all that can't be."""
    names = list(names)
    files: list[SourceFile] = []
    faults: list[Fault] = []
    commits: list[str] = []
    described: list[str] = []
    for name in names:
        try:
            if not _is_here(name) and _HUB_ID.fullmatch(name) and _kind(name) is None:
                found, commit = _hub_files(name, split or "train", revision)
                commits.append(commit)
                described.append(f"{name} (split {split or 'train'})")
            else:
                found = _local_or_remote(name)
                described.append(_describe(name))
            files += found
        except UserError as error:
            faults += error.faults
    if not commits and not faults:
        faults += _hub_only_options(split, revision)
    if faults:
        raise UserError(faults)
    return Source(", ".join(described), ", ".join(commits) or None, tuple(files))


def _is_here(name: str) -> bool:
    return name == EMBEDDED or "://" in name or glob.has_magic(name) or Path(name).exists()


def _hub_only_options(split: str | None, revision: str | None) -> Iterable[Fault]:
    for option, value in (("--split", split), ("--revision", revision)):
        if value is not None:
            remedy = "leave it out, and choose files by a glob such as 'FOLDER/train-*.parquet'"
            yield Fault(option, "applies to data sets on the hub only", remedy, value)


def _describe(name: str) -> str:
    if name == EMBEDDED:
        from gaguide.data.build.python_reference import EMBEDDED_DESCRIPTION

        return EMBEDDED_DESCRIPTION
    # The last part alone for local paths: where they lie differs between machines.
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
        raise UserError(Fault("--source", "no such file or folder", remedy, name))
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
        Fault("--source", "the folder holds no file of a known kind", f"known: {_KNOWN}", str(folder))
    )


def _remote(address: str) -> list[SourceFile]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        paths = sorted(filesystem.glob(path)) if glob.has_magic(path) else [path]
        sizes = [int(filesystem.info(each)["size"] or 0) for each in paths]
    except (OSError, ValueError, ImportError) as error:
        remedy = "check the address, the connection and the credentials of that store"
        raise UserError(Fault("--source", f"can't be opened ({error})", remedy, address)) from None
    if not paths:
        raise UserError(Fault("--source", "nothing lies at this address", "check it", address))
    urls = [filesystem.unstrip_protocol(each) for each in paths]
    return [_source_file(url, url.rsplit("/", 1)[-1], size) for url, size in zip(urls, sizes)]


def _hub_files(name: str, split: str, revision: str | None) -> tuple[list[SourceFile], str]:
    """Files of a hub data set's split at one commit, and that commit."""
    import datasets
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=20).sha or ""
        builder = datasets.load_dataset_builder(name, revision=commit)
    except Exception as error:  # the hub's clients raise their transport's own errors
        reason = first_line(error)
        remedy = (
            "check the name, --revision and the connection; without one, copy the data set's files to this "
            "machine and give their folder"
        )
        problem = (
            f"no such file or folder here, and the hub did not give it ({type(error).__name__}: {reason})"
        )
        raise UserError(Fault("--source", problem, remedy, name)) from None
    by_split = {str(key): list(urls) for key, urls in (builder.config.data_files or {}).items()}
    if split not in by_split:
        raise UserError(Fault("--split", f"{name} has no such split", suggestion(split, by_split), split))
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
        raise UserError(Fault("--source", "a file of unknown kind", f"known: {_KNOWN}", url))
    # tarfile finds out for itself how an archive is compressed.
    return SourceFile(url, name, kind, None if kind == "tar" else _compression(name), size)
