"""DeepSpeed's files, written so that a full disk on one rank neither hangs nor surprises the others.

DeepSpeed's saving is a row of collectives with writes in between: a rank that left it by an exception would
keep all others waiting. Here a failed write is remembered and the row goes on to its end; afterwards the
ranks tell each other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gaguide.files import hash_file

STATE_TAG = "state"
"""Tag of DeepSpeed's files inside a checkpoint folder."""

MODEL = "model"
"""Folder of the model's configuration and the tokenizer inside a checkpoint folder."""


@dataclass
class Written:
    """What this rank wrote: its files, or the first problem it met (None: all went well)."""

    files: list[Path] = field(default_factory=list)
    problem: str | None = None

    def attempt(self, write: Any, *arguments: Any, **keywords: Any) -> Any:
        """Call `write`; a disk's fault becomes `problem`, anything else is raised."""
        if self.problem is not None:
            return None  # one is enough: what follows would fill the disk again
        try:
            return write(*arguments, **keywords)
        except (OSError, RuntimeError) as error:
            self.problem = disk_problem(error)
            if self.problem is None:
                raise
            return None

    def hashes(self, folder: Path) -> dict[str, str]:
        """Relative path → sha256 of this rank's files, flushed to disk by the host that wrote them."""
        return {str(path.relative_to(folder)): hash_file(path, flush=True) for path in self.files}


def write_engine(engine: Any, folder: Path) -> Written:
    """Save a DeepSpeed engine's state below `folder` (a collective); never raises for a disk's fault."""
    written = Written()
    extra = {"optimizer_parameters": _optimizer_parameters(engine)}
    with _guarded(engine, written):
        engine.save_checkpoint(str(folder), STATE_TAG, client_state={"gaguide": extra}, save_latest=False)
    return written


def _optimizer_parameters(engine: Any) -> list[str] | None:
    """Names in the optimizer's order at ZeRO stage 0, where DeepSpeed does not record them."""
    if engine.zero_optimization():
        return None
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [names.get(id(each), "") for group in engine.optimizer.param_groups for each in group["params"]]


@contextmanager
def _guarded(engine: Any, written: Written) -> Iterator[None]:
    storage = engine.checkpoint_engine
    save, makedirs, copytree = storage.save, storage.makedirs, shutil.copytree

    def guarded_save(state_dict: Any, path: Any) -> None:
        written.attempt(save, state_dict, path)
        written.files.append(Path(path))

    def guarded_copytree(source: Any, target: Any, **keywords: Any) -> Any:
        # Optimizer state that lies on NVMe is copied file by file.
        written.attempt(copytree, source, target, **keywords)
        written.files += [path for path in Path(target).rglob("*") if path.is_file()]
        return target

    with (
        patch.object(storage, "save", guarded_save),
        patch.object(storage, "makedirs", lambda *a, **k: written.attempt(makedirs, *a, **k)),
        # DeepSpeed would add its own script for exports.
        patch.object(engine, "_copy_recovery_script", lambda *_: None),
        patch.object(shutil, "copytree", guarded_copytree),
    ):
        yield


def disk_problem(error: Exception) -> str | None:
    """What went wrong, in words, where a file could not be written; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}"
    text = str(error)
    if isinstance(error, shutil.Error):
        return text[:200]
    # torch's writer tells no errno.
    if "PytorchStreamWriter" in text or "inline_container" in text or "unexpected pos" in text:
        return "torch could not write all of a file"
    return None
