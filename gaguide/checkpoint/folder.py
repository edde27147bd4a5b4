"""Looking at a run's checkpoints from outside the run: which there are, which are whole, which is best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.checkpoint.store import held_out_loss, read_checkpoint
from gaguide.checkpoint.verify import MANIFEST
from gaguide.errors import Fault, UserError
from gaguide.files import folder_size
from gaguide.log import say


@dataclass(frozen=True)
class Described:
    """A checkpoint and what is wrong with it; numbers are None where its manifest cannot be read."""

    path: Path
    step: int
    size: int
    files: int
    problems: list[str]
    world_size: int | None
    zero_stage: int | None
    lm_loss: float | None
    latest: bool = False
    best: bool = False

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path), "whole": not self.problems}


def describe_checkpoints(folder: Path) -> list[Described]:
    """The checkpoints of a run's output folder, or the one that `folder` is, by step; every file is read.

    Of those that are whole the newest is `latest`, the one with the lowest held-out loss `best`.
    """
    described = [_describe(path) for path in _folders(folder)]
    whole = [each for each in described if not each.problems]
    latest = max(whole, key=lambda each: each.step, default=None)
    losses = [(each.lm_loss, each.step) for each in whole if each.lm_loss is not None]
    best = min(losses)[1] if losses else None
    return [
        Described(**vars(each) | {"latest": each is latest, "best": each in whole and each.step == best})
        for each in described
    ]


def choose(folder: Path, step: str) -> Described:
    """The checkpoint of a step; for `latest`, `best` the newest, best whole one: says what it passes over.

    Raises a `UserError` where there is none, or none that is whole. Reads the files of no more than it must.
    """
    paths = _folders(folder)
    if step == "latest":
        candidates = paths[::-1]
    elif step == "best":
        losses = {path: held_out_loss(path) for path in paths}
        measured = [(loss, path) for path, loss in losses.items() if loss is not None]
        candidates = [path for _, path in sorted(measured)]
    else:
        candidates = [path for path in paths if str(_step(path)) == step]
    known = ", ".join(str(_step(path)) for path in paths)
    passed_over: list[Described] = []
    for path in candidates:
        found = _describe(path)
        if not found.problems:
            for other in passed_over:
                say(f"checkpoint {other.path} is passed over: {'; '.join(other.problems)}")
            return found
        passed_over.append(found)
    if passed_over:
        problem, remedy = "; ".join(passed_over[0].problems), f"take another; there are: {known}"
    else:
        problem = "no held-out loss was measured with one" if step == "best" else "no such checkpoint"
        remedy = f"there are: {known}"
    raise UserError(Fault("--step", problem, remedy, step))


def _folders(folder: Path) -> list[Path]:
    if (folder / MANIFEST).exists() or _step(folder) is not None:
        return [folder]
    parent = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(path for path in parent.glob("step-*") if _step(path) is not None)
    if not found:
        remedy = "give a run's output folder, or a folder checkpoints/step-NNNNNNNN"
        raise UserError(Fault("folder", "holds no checkpoint", remedy, str(folder)))
    return found


def _step(folder: Path) -> int | None:
    number = folder.name.removeprefix("step-")
    return int(number) if folder.is_dir() and number != folder.name and number.isdigit() else None


def _describe(path: Path) -> Described:
    checkpoint, problems = read_checkpoint(path)
    size = folder_size(path)
    if checkpoint is None:
        return Described(path, _step(path) or 0, size, 0, problems, None, None, None)
    numbers = (checkpoint.world_size, checkpoint.zero_stage, checkpoint.lm_loss)
    return Described(path, checkpoint.step, size, len(checkpoint.files), problems, *numbers)
