"""The documents of a task: the splits of its data set, as the library `datasets` loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, UserError, first_line, suggestion
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.fields import Document, DocumentError, call
from gaguide.evaluate.tasks.harness.source import FunctionReference

_BUILDERS = {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "generator"}
"""Names of `datasets` that read files given as data_files."""


class Documents:
    """The splits of `task`'s data set. Raises `UserError` where it cannot be loaded."""

    def __init__(self, task: HarnessTask) -> None:
        self._task = task
        self._kwargs = _resolve_files(task)
        self._splits = self._load()
        self.source = self._source()
        """The data file, where there is one; else the data set's name."""

    def asked(self) -> tuple[Sequence[Document], tuple[str, ...]]:
        """The documents that are evaluated, and the names of their columns."""
        task = self._task
        split = task.test_split if task.test_split is not None else task.validation_split
        documents = self._split(split, "test_split", task.process_docs)
        if not len(documents):
            raise UserError.of(self.source, "does not contain a document", "give at least one row")
        features = getattr(documents, "features", None)
        return documents, tuple(documents[0] if features is None else features)

    def demonstrations(self) -> list[Document]:
        """The documents that demonstrations are drawn from, by the harness's rule."""
        task, fewshot = self._task, self._task.fewshot
        if fewshot.split is not None:
            return list(self._split(fewshot.split, "fewshot_split", fewshot.process_docs))
        if fewshot.samples is not None:
            samples = fewshot.samples
            return list(_call(samples, task) if isinstance(samples, FunctionReference) else samples)
        for field in ("training_split", "validation_split", "test_split"):
            if (split := getattr(task, field)) is not None:
                return list(self._split(split, field, task.process_docs))
        raise AssertionError("a task without a split is refused when its file is read")

    def _split(self, name: Any, field: str, process: FunctionReference | None) -> Any:
        if name not in self._splits:
            known = ", ".join(map(str, self._splits))
            where = f"{self._task.path}: {field}"
            raise UserError.of(where, f"must be one of {known}", suggestion(str(name), self._splits), name)
        split = self._splits[name]
        return split if process is None else _call(process, self._task, split)

    def _load(self) -> Mapping[str, Any]:
        task = self._task
        if task.custom_dataset is not None:
            metadata = dict(task.metadata)
            function = task.custom_dataset.load()
            return dict(_call(lambda: function(**metadata, **self._kwargs), task, what=task.custom_dataset))
        import datasets

        path = _local(task, str(task.dataset_path))
        shown, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised below
        try:
            loaded: Any = datasets.load_dataset(path, task.dataset_name, **self._kwargs)
        except Exception as error:  # whatever the library raises: without data there is nothing to evaluate
            raise UserError(self._loading_fault(error)) from None
        finally:
            datasets.logging.set_verbosity(verbosity)
            if shown:
                datasets.enable_progress_bars()
        name = self._kwargs.get("split")
        return {str(name): loaded} if name is not None else dict(loaded)

    def _loading_fault(self, error: Exception) -> Fault:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause) or type(cause).__name__
        path, name = self._task.dataset_path, self._task.dataset_name
        files = _listed_files(self._kwargs)
        if files:
            problem = f"its data cannot be read as {path} ({reason})"
            return Fault(f"{self._task.path}: dataset_kwargs", problem, "correct the file", ", ".join(files))
        remedy = (
            "load it once where the hub can be reached (it is then cached), or give `dataset_path: json` "
            "with `dataset_kwargs: {data_files: {test: FILE}}`"
        )
        shown = str(path) if name is None else f"{path} {name}"
        return Fault(f"{self._task.path}: dataset_path", f"cannot be loaded ({reason})", remedy, shown)

    def _source(self) -> str:
        task = self._task
        split = task.test_split if task.test_split is not None else task.validation_split
        files = self._kwargs.get("data_files")
        given = files.get(split) if isinstance(files, Mapping) else files
        if isinstance(given, (list, tuple)) and len(given) == 1:
            (given,) = given
        if isinstance(given, str) and task.dataset_path in _BUILDERS:
            return given
        names = (task.dataset_path or "custom data set", task.dataset_name, str(split))
        return " ".join(name for name in names if name)


def _call(function: Any, task: HarnessTask, *arguments: Any, what: FunctionReference | None = None) -> Any:
    """The result of a trusted function; `UserError` where it raises an error."""
    if isinstance(function, FunctionReference):
        try:
            return call(function, "", *arguments)
        except DocumentError as error:
            raise UserError.of(f"{task.path}", error.args[1], error.args[2]) from None
    try:
        return function(*arguments)
    except Exception as error:  # whatever the user's code raises
        assert what is not None
        problem = f"!function {what.name} raised {type(error).__name__}: {first_line(error)}"
        raise UserError.of(f"{task.path}", problem, f"correct {what.file}") from None


def _local(task: HarnessTask, name: str) -> str:
    """A data folder or file, relative to the working folder as in the harness, or else to the task file."""
    beside = task.path.parent / name
    if "://" in name or Path(name).expanduser().exists() or not beside.exists():
        return str(Path(name).expanduser()) if name.startswith("~") else name
    return str(beside)


def _resolve_files(task: HarnessTask) -> dict[str, Any]:
    """dataset_kwargs with the paths of data files resolved; raises `UserError` for files that are missing."""
    kwargs, faults = dict(task.dataset_kwargs), []

    def resolve(name: Any) -> Any:
        if isinstance(name, Mapping):
            return {split: resolve(one) for split, one in name.items()}
        if isinstance(name, (list, tuple)):
            return [resolve(one) for one in name]
        found = _local(task, str(name))
        is_pattern = "://" in found or any(sign in found for sign in "*?[") or "data_dir" in kwargs
        if not is_pattern and not Path(found).exists():
            remedy = "give a path relative to the working folder or to the task file"
            field = f"{task.path}: dataset_kwargs.data_files"
            faults.append(Fault(field, "does not exist", remedy, str(name)))
        return found

    reads_files = task.dataset_path in _BUILDERS  # in other data sets, paths are those of the data set
    if kwargs.get("data_files") is not None and reads_files:
        kwargs["data_files"] = resolve(kwargs["data_files"])
    if kwargs.get("data_dir") is not None and reads_files:
        kwargs["data_dir"] = _local(task, str(kwargs["data_dir"]))
    if faults:
        raise UserError(faults)
    return kwargs


def _listed_files(kwargs: Mapping[str, Any]) -> list[str]:
    def names(value: Any) -> list[str]:
        if isinstance(value, Mapping):
            return [name for one in value.values() for name in names(one)]
        return [name for one in value for name in names(one)] if isinstance(value, list) else [str(value)]

    return names(kwargs["data_files"]) if kwargs.get("data_files") else []
