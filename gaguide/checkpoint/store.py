"""The checkpoints of a run: `checkpoints/step-NNNNNNNN/`, complete whenever they are visible.

Every rank writes into one hidden folder, then flushes and hashes its files. When all have succeeded, rank 0
writes the manifest, renames the folder and replaces the pointers `latest` and `best`. A crash or a full disk
at any moment leaves the older checkpoints as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gaguide.checkpoint.verify import MANIFEST, verify_files
from gaguide.distributed import World, all_gather, broadcast
from gaguide.engine.layout import StateLayout
from gaguide.engine.save import SaveResult
from gaguide.errors import Fault, UserError
from gaguide.files import disk_fault, folder_size, sync_folder, sync_folders, write_json, write_text
from gaguide.log import say

T = TypeVar("T")

MODEL_FOLDER = "model"
"""Folder of the model's configuration and the tokenizer inside a checkpoint folder."""


@dataclass(frozen=True)
class Checkpoint:
    """The manifest of a checkpoint."""

    step: int
    """The optimizer step after which it was saved."""
    identity: dict[str, Any]
    """Everything that must be the same for a run to resume from it: data order, model, guidance …"""
    world_size: int
    """Ranks that saved it."""
    layout: StateLayout
    """Layout of the engine's files; another number of ranks, or another layout, reshards them."""
    files: dict[str, str]
    """SHA-256 of every file by its path relative to the checkpoint's folder."""
    lm_loss: float | None = None
    """Held-out language-model loss after that step; None where it was not measured."""
    measure: str | None = None
    """Identifies the blocks of that loss; losses of different measures are not compared."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Resumes that changed something: {"step", "from", "changes": {name: [before, after]}} each."""
    data_start: int = 0
    """Step after which the present data began at their first block; 0 unless they changed."""
    seconds: float | None = None
    """Seconds spent in the steps so far; None in checkpoints of older versions."""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage that saved it."""
        return int(self.layout["zero_stage"])


def read_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """A checkpoint's manifest, None if it cannot be read, and the problems of its files, in words."""
    try:
        checkpoint = Checkpoint(**json.loads((folder / MANIFEST).read_text("utf-8")))
        if (
            not checkpoint.files
            or not isinstance(checkpoint.identity, dict)
            or not checkpoint.zero_stage >= 0
        ):
            raise ValueError("files, identity or layout are missing")
        checkpoint.files.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [f"its manifest cannot be read ({error})"]
    return checkpoint, verify_files(folder, checkpoint.files)


def held_out_loss(folder: Path) -> tuple[float, str | None] | None:
    """The held-out loss in a checkpoint's manifest and its measure, if any; its files are not read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        loss = manifest["lm_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (float(loss), manifest.get("measure")) if isinstance(loss, (int, float)) else None


class CheckpointStore:
    """Saves, finds and prunes the checkpoints below one folder, which all ranks share."""

    def __init__(
        self, folder: Path, world: World, keep: int, keep_best: int = 0, measure: str | None = None
    ) -> None:
        self.folder, self.world, self.keep, self.keep_best = folder, world, keep, keep_best
        self.measure = measure
        """Identifies the blocks of this run's held-out losses."""
        self.history: list[dict[str, Any]] = []
        """`Checkpoint.history` of the run, for the manifests."""
        self.data_start = 0
        """`Checkpoint.data_start` of the run, for the manifests."""
        self.seconds: float | None = None
        """`Checkpoint.seconds` of the next one to be saved."""

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after `step`."""
        return self.folder / f"step-{step:08}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def best(self) -> list[int]:
        """Steps with a held-out loss of this run's measure, by loss, then by step."""
        losses = {step: held_out_loss(self.path(step)) for step in self.steps()}
        known = {step: loss[0] for step, loss in losses.items() if loss and loss[1] == self.measure}
        return sorted(known, key=lambda step: (known[step], step))

    def save(
        self,
        step: int,
        identity: dict[str, Any],
        layout: StateLayout,
        lm_loss: float | None,
        write: Callable[[Path], SaveResult],
    ) -> None:
        """Save on all ranks; a collective. `write(folder)` writes this rank's state below `folder`.

        An existing checkpoint of that step is kept: same run and step, so the same state. If any rank cannot
        write, all raise the same `UserError` and nothing of the checkpoint remains.
        """
        if broadcast(self.path(step).exists()):
            return
        hidden = self.folder / f".saving-step-{step:08}"
        self._on_all_ranks(hidden, lambda: self._make(hidden))
        result = write(hidden)
        hashes = self._on_all_ranks(hidden, lambda: _hashes(result, hidden))
        merged = {name: digest for part in hashes for name, digest in part.items()}
        checkpoint = Checkpoint(
            step,
            identity,
            self.world.size,
            layout,
            merged,
            lm_loss,
            self.measure,
            self.history,
            self.data_start,
            self.seconds,
        )
        self._on_all_ranks(hidden, lambda: self._publish(hidden, checkpoint))

    def _make(self, hidden: Path) -> None:
        if self.world.is_main:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir(parents=True)

    def _publish(self, hidden: Path, checkpoint: Checkpoint) -> None:
        if not self.world.is_main:
            return
        write_json(hidden / MANIFEST, asdict(checkpoint))
        sync_folders(hidden)
        hidden.rename(self.path(checkpoint.step))
        sync_folder(self.folder)
        write_text(self.folder / "latest", self.path(checkpoint.step).name + "\n")
        best = self._point_at_best()
        for old in [old for old in self.steps() if old <= checkpoint.step][: -self.keep]:
            if old not in best:
                self._remove(self.path(old))

    def _point_at_best(self) -> list[int]:
        """Replace the pointer `best`; returns the steps that `keep_best` keeps."""
        best = self.best()[: self.keep_best]
        if best:
            write_text(self.folder / "best", self.path(best[0]).name + "\n")
        return best

    def _remove(self, old: Path) -> None:
        """Rename, then remove: a kill in between leaves no visible part of a checkpoint."""
        hidden = self.folder / f".removing-{old.name}"
        try:
            old.rename(hidden)
            shutil.rmtree(hidden)
        except OSError as error:
            say(f"the old checkpoint {old.name} could not be removed completely ({error.strerror or error})")

    def _sweep(self) -> None:
        """Remove what interrupted saves and removals left behind."""
        for leftover in [*self.folder.glob(".saving-step-*"), *self.folder.glob(".removing-step-*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def note_loss(self, step: int, lm_loss: float) -> None:
        """Put the held-out loss into the manifest of a checkpoint that lacks it, or has one of another
        measure, which may make it the best one."""
        found = held_out_loss(self.path(step))
        if self.world.is_main and (found is None or found[1] != self.measure):
            manifest = self.path(step) / MANIFEST
            measured = {"lm_loss": lm_loss, "measure": self.measure}
            with suppress(OSError):  # a full disk: the checkpoint is complete without it
                write_json(manifest, json.loads(manifest.read_text("utf-8")) | measured)
                self._point_at_best()

    def _on_all_ranks(self, hidden: Path, part: Callable[[], T]) -> list[T]:
        """Results of a part of a save by rank; a disk error on any rank ends the save on all."""
        result: Any = None
        problem = None
        try:
            result = part()
        except OSError as error:
            problem = f"host {self.world.host}: {disk_fault(error)[0]}"
        outcomes = all_gather((result, problem))
        problems = dict.fromkeys(problem for _, problem in outcomes if problem)
        if not problems:
            return [result for result, _ in outcomes]
        fault = self._fault("; ".join(problems)) if self.world.is_main else None
        if self.world.is_main:
            shutil.rmtree(hidden, ignore_errors=True)
        fault = broadcast(fault)
        assert fault is not None
        raise UserError(fault)

    def _fault(self, problem: str) -> Fault:
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        kept = self.steps()
        size = folder_size(self.path(kept[-1])) if kept else 0
        free = shutil.disk_usage(place).free
        newest = f"the newest checkpoint, of step {kept[-1]}, is complete" if kept else "there is none yet"
        needs = f" (the last one takes {size / 1e6:,.1f} MB)" if size else ""
        return Fault(
            "output",
            f"the checkpoint could not be written ({problem}); {free / 1e6:,.1f} MB are free there, {newest}",
            f"make room for one more checkpoint{needs} and start the same command again, which resumes from "
            "the newest; or lower checkpoint.keep",
            str(self.folder),
        )

    def newest(
        self, identity: dict[str, Any], refuse: Callable[[Checkpoint], Fault | None] | None = None
    ) -> Checkpoint | None:
        """The newest complete checkpoint of this run, the same on every rank; None if there is none.

        Damaged ones are reported and renamed, half-written ones removed, so no other process may use the
        folder. Raises a `UserError` if the folder holds checkpoints of another run: where `refuse` returns a
        fault, by default for every other identity.
        """
        refuse = refuse or (lambda checkpoint: self._refuse_others(checkpoint, identity))
        found, fault = broadcast(self._search(refuse) if self.world.is_main else (None, None))
        if fault is not None:
            raise UserError(fault)
        return found

    def _search(self, refuse: Callable[[Checkpoint], Fault | None]) -> tuple[Checkpoint | None, Fault | None]:
        self._sweep()
        for step in reversed(self.steps()):
            checkpoint, problems = read_checkpoint(self.path(step))
            if checkpoint is None or problems:
                aside = self.folder / f"damaged-{self.path(step).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
                say(f"checkpoint {self.path(step)} is renamed to {aside.name}: {'; '.join(problems)}")
                continue
            fault = refuse(checkpoint)
            return (None, fault) if fault is not None else (checkpoint, None)
        return None, None

    def _refuse_others(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> Fault | None:
        names = sorted(identity.keys() | checkpoint.identity.keys())
        differing = [name for name in names if identity.get(name) != checkpoint.identity.get(name)]
        if not differing:
            return None
        problem = f"holds checkpoints of another run: {', '.join(differing)} differ"
        return Fault("output", problem, "choose another output folder", str(self.folder.parent))


def _hashes(result: SaveResult, hidden: Path) -> dict[str, str]:
    """Hashes of this rank's files once they are on disk; raises `OSError` if they could not be written."""
    if result.problem is not None:
        raise OSError(result.problem)
    return result.hashes(hidden)
