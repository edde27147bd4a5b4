"""The checkpoints of a run: `checkpoints/step-NNNNNNNN/`, complete whenever they are visible.

Every rank writes into one hidden folder; when all have succeeded, rank 0 hashes and flushes the files,
writes the manifest, renames the folder and replaces the pointer `latest`. A crash at any moment leaves the
older checkpoints as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaguide.checkpoint.verify import MANIFEST, hash_files, sync_folder, verify_files
from gaguide.dist import World, barrier, broadcast
from gaguide.errors import Fault, UserError
from gaguide.log import say, write_json, write_text


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the optimizer step it was saved after and what it belongs to.

    `identity` names everything that must be the same for the run to go on (data order, model, guidance …);
    `zero_stage` and `world_size` shape DeepSpeed's files; `files` maps each to its sha256.
    """

    step: int
    identity: dict[str, Any]
    world_size: int
    zero_stage: int
    files: dict[str, str]


class CheckpointStore:
    """Saves, finds and prunes the checkpoints below one folder (shared by all ranks)."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, keep

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step`."""
        return self.folder / f"step-{step:08}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def save(
        self, step: int, identity: dict[str, Any], zero_stage: int, write: Callable[[Path], None]
    ) -> None:
        """Save on all ranks: `write(folder)` puts this rank's state into the hidden folder.

        A checkpoint of that step that is there already is kept: same step, same run, same state.
        """
        if broadcast(self.path(step).exists()):
            return
        hidden = self.folder / f".saving-step-{step:08}"
        if self.world.is_main:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir(parents=True)
        barrier()
        write(hidden)
        barrier()
        if self.world.is_main:
            checkpoint = Checkpoint(step, identity, self.world.size, zero_stage, hash_files(hidden))
            write_json(hidden / MANIFEST, asdict(checkpoint))
            sync_folder(hidden)
            hidden.rename(self.path(step))
            sync_folder(self.folder)
            write_text(self.folder / "latest", self.path(step).name + "\n")
            for old in [old for old in self.steps() if old <= step][: -self.keep]:
                shutil.rmtree(self.path(old))
        barrier()

    def newest(self, identity: dict[str, Any]) -> Checkpoint | None:
        """The newest whole checkpoint of this run, on every rank; damaged ones are named and set aside.

        Raises a `UserError` where the folder holds checkpoints of another run.
        """
        found, fault = broadcast(self._search(identity) if self.world.is_main else (None, None))
        if fault is not None:
            raise UserError(fault)
        return found

    def _search(self, identity: dict[str, Any]) -> tuple[Checkpoint | None, Fault | None]:
        for step in reversed(self.steps()):
            checkpoint, problems = self.read(step)
            if checkpoint is None or problems:
                aside = self.folder / f"damaged-{self.path(step).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
                say(f"checkpoint {self.path(step)} is set aside as {aside.name}: {'; '.join(problems)}")
                continue
            differing = sorted(
                name
                for name in identity.keys() | checkpoint.identity.keys()
                if identity.get(name) != checkpoint.identity.get(name)
            )
            if differing:
                return None, Fault(
                    "output",
                    f"holds checkpoints of another run: {', '.join(differing)} differ",
                    "choose another output folder, or remove this one",
                    str(self.folder.parent),
                )
            return checkpoint, None
        return None, None

    def read(self, step: int) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint after `step` (None where its manifest is unreadable) and what is wrong with it."""
        folder = self.path(step)
        try:
            checkpoint = Checkpoint(**json.loads((folder / MANIFEST).read_text("utf-8")))
            if not checkpoint.files or not isinstance(checkpoint.identity, dict):
                raise ValueError("it lists no files or no identity")
            checkpoint.files.items()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return None, [f"its manifest cannot be read ({error})"]
        return checkpoint, verify_files(folder, checkpoint.files)
