"""Looking at a run's checkpoints from outside the run: which there are, which are whole, which is best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.checkpoint.store import read_checkpoint
from gaguide.checkpoint.verify import MANIFEST, folder_size
from gaguide.errors import Fault, UserError


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
    """The checkpoint of a step, or `latest`, or `best`; a `UserError` where it is not there or damaged."""
    found = describe_checkpoints(folder)
    known = ", ".join(str(each.step) for each in found)
    if step in ("latest", "best"):
        chosen = next((each for each in found if getattr(each, step)), None)
        problem = f"no whole checkpoint is the {step}" + (
            ": no held-out loss was measured with one" if step == "best" else ""
        )
    else:
        chosen = next((each for each in found if str(each.step) == step), None)
        problem = "no such checkpoint"
    if chosen is None and step == "latest" and found:
        chosen = found[-1]  # damaged, as all of them: say how
    if chosen is None:
        raise UserError(Fault("--step", problem, f"there are: {known}", step))
    if chosen.problems:
        raise UserError(
            Fault("--step", "; ".join(chosen.problems), f"take another; there are: {known}", step)
        )
    return chosen


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
