"""The values of `--source`, and the files that they name.

A source is the embedded corpus, a file, a folder, a glob, any fsspec address, or a data set on the hub. Hub
data sets are read file by file at a pinned commit; code from a repository is never run.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data.build.identity import identify_local, identify_remote, source_digest
from gaguide.data.build.kinds import HIDDEN, KINDS, KNOWN, SourceFile, is_hidden, kind_of, stored_compression
from gaguide.errors import (
    Fault,
    FaultCollector,
    UserError,
    first_line,
    is_signed,
    mask_credentials,
    suggestion,
)

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_UNKNOWN = "of unknown kind"
_IN_OUTPUT = "inside the output folder"


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
    is_array: bool = False
    """Whether a JSON file is an array, or has values that span lines."""


@dataclass(frozen=True)
class Source:
    """The files of all `--source` values."""

    description: str
    """Description of the source in the manifest, without credentials."""
    revision: str | None
    """Commits of hub data sets; None for other sources."""
    files: tuple[SourceFile, ...]
    """The files, in order."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files of its folders that are not read, by reason."""


def find_source(
    names: Iterable[str], split: str | None, revision: str | None, output: Path | None = None
) -> Source:
    """Resolve `--source` values; one `UserError` lists all that cannot be resolved.

    Files in the folder `output`, where the shards will be, are never read.
    """
    names = list(names)
    files: list[SourceFile] = []
    commits: list[str] = []
    descriptions: list[str] = []
    left_out: Counter[str] = Counter()
    with FaultCollector() as faults:
        for name in names:
            with faults.catching():
                if not _is_path_or_address(name) and _HUB_ID.fullmatch(name) and kind_of(name) is None:
                    found, commit = _hub_files(name, split or "train", revision)
                    commits.append(commit)
                    descriptions.append(f"{name} (split {split or 'train'})")
                else:
                    found = _local_or_remote(name, output, left_out)
                    descriptions.append(_describe(name))
                files += found
        if not commits and not faults:
            faults.add(*_hub_only_options(split, revision))
        files = faults.attempt(identify_local, files) or []
    return Source(
        ", ".join(descriptions), ", ".join(commits) or None, tuple(files), dict(sorted(left_out.items()))
    )


def local_content(names: Iterable[str], output: Path | None = None) -> str | None:
    """SHA-256 over names and contents of the files that `--source` values name, as in a manifest.

    None where one is an address or a data set on the hub. Raises a `UserError` where files do not exist.
    """
    names = list(names)
    hub = [name for name in names if not _is_path_or_address(name) and kind_of(name) is None]
    if any(map(_HUB_ID.fullmatch, hub)) or any("://" in name for name in names):
        return None
    return source_digest(find_source(names, None, None, output).files)


def _is_path_or_address(name: str) -> bool:
    return name == EMBEDDED_SHARDS or "://" in name or glob.has_magic(name) or _local(name).exists()


def _local(name: str) -> Path:
    return Path(name).expanduser()


def _hub_only_options(split: str | None, revision: str | None) -> Iterable[Fault]:
    for option, value in (("--split", split), ("--revision", revision)):
        if value is not None:
            remedy = "omit it, and choose files by a glob such as 'FOLDER/train-*.parquet'"
            yield Fault(option, "applies to data sets on the hub only", remedy, value)


def _describe(name: str) -> str:
    if name == EMBEDDED_SHARDS:
        from gaguide.data.build.python_reference import EMBEDDED_DESCRIPTION

        return EMBEDDED_DESCRIPTION
    if "://" in name and not _local(name).exists():
        # A signature differs every time, also in its time and its lifetime.
        return mask_credentials(name.partition("?")[0] if is_signed(name) else name)
    # Only the name of local paths, since their folder differs between machines.
    return Path(name).name or name


def _local_or_remote(name: str, output: Path | None, left_out: Counter[str]) -> list[SourceFile]:
    if name == EMBEDDED_SHARDS:
        return [SourceFile(name, name, name, None, 0, content=_embedded_content())]
    path = _local(name)
    if "://" in name and not path.exists():
        protocol, _, rest = name.partition("://")
        return _local_or_remote(rest, output, left_out) if protocol == "file" else _remote(name)
    if path.is_dir():
        return _of_folder(path, output, left_out)
    # A file may have a name that looks like a glob.
    paths = [path] if path.is_file() else _of_glob(str(path), output, left_out)
    files: list[SourceFile] = []
    for each in paths:
        if each.is_dir():
            files += _of_folder(each, output, left_out)
        else:
            files.append(_source_file(str(each), each.name, each.stat().st_size))
    if not files:
        remedy = (
            "give existing files, a folder, a quoted glob, a data set on the hub (OWNER/NAME), or 'embedded'"
        )
        raise UserError.of("--source", "file or folder does not exist", remedy, name)
    return files


def _embedded_content() -> str:
    import hashlib

    from gaguide.data.build.python_reference import embedded_documents

    return f"sha256 {hashlib.sha256(chr(0).join(embedded_documents()).encode()).hexdigest()}"


def _of_glob(pattern: str, output: Path | None, left_out: Counter[str]) -> list[Path]:
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (absolute patterns too)
    if "**" in pattern:  # it matches the files of the folders too
        paths = [path for path in paths if path.is_file()]
    if output is not None:
        inside = [path for path in paths if _is_inside(path, output)]
        left_out.update({_IN_OUTPUT: len(inside)} if inside else {})
        paths = [path for path in paths if path not in inside]
    return paths


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _of_folder(folder: Path, output: Path | None, left_out: Counter[str]) -> list[SourceFile]:
    if output is not None and _is_inside(output, folder):
        problem = f"contains the output folder {output}, whose files would be read as text"
        remedy = "give an --output outside it, or name the files by a quoted glob"
        raise UserError.of("--source", problem, remedy, str(folder))
    by_kind: dict[str, list[SourceFile]] = {}
    for relative, path in sorted(_walk(folder, left_out)):
        if is_hidden(relative):
            left_out[HIDDEN] += 1
        elif kind_of(path.name) is None:
            left_out[f"{_UNKNOWN} ({path.suffix or path.name})"] += 1
        else:
            found = _source_file(str(path), relative, path.stat().st_size)
            by_kind.setdefault(found.kind, []).append(found)
    kinds = [kind for kind in KINDS if kind in by_kind]
    if not kinds:
        raise UserError.of(
            "--source", "the folder contains no file of a known kind", f"known: {KNOWN}", str(folder)
        )
    for kind in kinds[1:]:
        left_out[f"{kind}, because the folder is read as {kinds[0]}"] += len(by_kind[kind])
    return by_kind[kinds[0]]


def _walk(folder: Path, left_out: Counter[str]) -> Iterator[tuple[str, Path]]:
    """Relative and whole paths of all files below a folder, behind links as well, each folder once."""
    seen: set[tuple[int, int]] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        stat = Path(top).stat()
        if (
            stat.st_dev,
            stat.st_ino,
        ) in seen:  # a link to a folder above or to one that another name leads to
            left_out["folder that a link names a second time"] += 1
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        for name in names:
            path = Path(top, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path
            else:
                left_out["broken link or special file"] += 1


def _remote(address: str) -> list[SourceFile]:
    import fsspec

    protocol = address.partition("://")[0]
    is_http = protocol in ("http", "https")
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        # The "?" of a query is not a pattern.
        pattern = path.partition("?")[0] if is_http else path
        paths = sorted(filesystem.glob(path)) if glob.has_magic(pattern) else [path]
        infos = [filesystem.info(each) for each in paths]
        contents = [identify_remote(filesystem, each, info) for each, info in zip(paths, infos)]
    except (OSError, ValueError, ImportError) as error:
        remedy = "check the address, the connection and the credentials of that store"
        raise UserError.of("--source", f"cannot be opened ({error})", remedy, address) from None
    if not paths:
        raise UserError.of("--source", "does not exist", "check the address", address)
    files = []
    for each, info, content in zip(paths, infos, contents):
        url = filesystem.unstrip_protocol(each)
        name = unquote(urlsplit(url).path if is_http else url).rsplit("/", 1)[-1]
        files.append(
            replace(_source_file(url, name, int(info["size"] or 0)), is_remote=True, content=content)
        )
    return files


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
        raise UserError.of("--source", problem, remedy, name) from None
    by_split = {str(key): list(urls) for key, urls in (builder.config.data_files or {}).items()}
    if split not in by_split:
        raise UserError.of("--split", f"is not a split of {name}", suggestion(split, by_split), split)
    found = [file for url in by_split[split] for file in _remote(url)]
    # A commit identifies the content of its files.
    return [replace(file, content=f"commit {commit}") for file in found], commit


def _source_file(url: str, name: str, size: int) -> SourceFile:
    kind = kind_of(name)
    if kind is None:
        raise UserError.of("--source", "is a file of unknown kind", f"known: {KNOWN}", url)
    return SourceFile(url, name, kind, stored_compression(name, kind), size)
