"""The checkpoints of a finished or running run: which exist, which are complete, which is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.checkpoint.store import held_out_loss, read_checkpoint
from gaguide.checkpoint.verify import MANIFEST
from gaguide.errors import UserError
from gaguide.files import folder_size, read_object
from gaguide.log import say


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint and its problems; numbers are None where its manifest cannot be read."""

    path: Path
    """Its folder."""
    step: int
    """The optimizer step after which it was saved."""
    size: int
    """Bytes of all its files."""
    files: int
    """Files that its manifest lists."""
    problems: list[str]
    """Its faults, in words; empty for a complete one."""
    world_size: int | None
    """Ranks that saved it."""
    zero_stage: int | None
    """ZeRO stage that saved it."""
    lm_loss: float | None
    """Held-out loss, where it was measured."""
    latest: bool = False
    """Whether it is the newest complete one."""
    best: bool = False
    """Whether it is the complete one with the lowest held-out loss."""

    def as_record(self) -> dict[str, Any]:
        """Its fields as plain JSON; `whole` says whether it has no problems."""
        return asdict(self) | {"path": str(self.path), "whole": not self.problems}


def describe_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints of a run's output folder by step, or only `folder` if it is one; reads every file."""
    described = [_describe(path) for path in _folders(folder)]
    whole = [each for each in described if not each.problems]
    latest = max(whole, key=lambda each: each.step, default=None)
    ranked = _comparable([each.path for each in whole])
    best = _step(ranked[0]) if ranked else None
    return [
        CheckpointInfo(**vars(each) | {"latest": each is latest, "best": each in whole and each.step == best})
        for each in described
    ]


def choose(folder: Path, step: str) -> CheckpointInfo:
    """The checkpoint of a step; for `latest` or `best` the newest or best complete one.

    Damaged ones that are skipped on the way are reported. Raises a `UserError` if no candidate is complete.
    """
    paths = _folders(folder)
    if step == "latest":
        candidates = paths[::-1]
    elif step == "best":
        candidates = _comparable(paths)
        others = sum(held_out_loss(path) is not None for path in paths) - len(candidates)
        if others:
            say(f"the held-out losses of {others} checkpoints are of other validation blocks: not compared")
    else:
        candidates = [path for path in paths if str(_step(path)) == step]
    known = ", ".join(str(_step(path)) for path in paths)
    skipped: list[CheckpointInfo] = []
    for path in candidates:
        found = _describe(path)
        if not found.problems:
            for other in skipped:
                say(f"checkpoint {other.path} is skipped: {'; '.join(other.problems)}")
            return found
        skipped.append(found)
    if skipped:
        problem, remedy = "; ".join(skipped[0].problems), f"choose another of: {known}"
    else:
        problem = "no checkpoint has a held-out loss" if step == "best" else "does not exist"
        remedy = f"choose one of: {known}"
    raise UserError.of("--step", problem, remedy, step)


def _comparable(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints whose held-out loss is of the newest measure, by loss, then by step."""
    losses = [(path, loss) for path in paths if (loss := held_out_loss(path)) is not None]
    if not losses:
        return []
    measure = losses[-1][1][1]
    return [path for _, path in sorted((loss[0], path) for path, loss in losses if loss[1] == measure)]


def _folders(folder: Path) -> list[Path]:
    if _step(folder) is not None:
        return [folder]
    if (folder / MANIFEST).exists():
        kind = read_object(folder / MANIFEST).get("format")  # set where the manifest is not a checkpoint's
        if kind is None:
            return [folder]
        remedy = "give a run's output folder; `gaguide data info FOLDER` describes a folder of shards"
        raise UserError.of("folder", f"is not a checkpoint: its {MANIFEST} is of {kind}", remedy, str(folder))
    parent = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(path for path in parent.glob("step-*") if _step(path) is not None)
    if not found:
        remedy = "give a run's output folder, or a folder checkpoints/step-NNNNNNNN"
        raise UserError.of("folder", "contains no checkpoint", remedy, str(folder))
    return found


def _step(folder: Path) -> int | None:
    number = folder.name.removeprefix("step-")
    return int(number) if folder.is_dir() and number != folder.name and number.isdigit() else None


def _describe(path: Path) -> CheckpointInfo:
    checkpoint, problems = read_checkpoint(path)
    size = folder_size(path)
    if checkpoint is None:
        return CheckpointInfo(path, _step(path) or 0, size, 0, problems, None, None, None)
    numbers = (checkpoint.world_size, checkpoint.zero_stage, checkpoint.lm_loss)
    return CheckpointInfo(path, checkpoint.step, size, len(checkpoint.files), problems, *numbers)
