"""Where a run starts from: its own checkpoints, another run's, and which settings may differ from there on.

Settings that determined the finished steps must stay. Those that act from the next step on (length, learning
rate and its schedule, weight decay, guidance, data) may change if the user asks for it with `resume_from`;
without it, only changes that could not affect finished steps are accepted. Changes are recorded in every
later checkpoint and in summary.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaguide.checkpoint.folder import CheckpointInfo, choose
from gaguide.checkpoint.store import Checkpoint
from gaguide.checkpoint.verify import MANIFEST
from gaguide.config import RunConfig
from gaguide.errors import Fault, UserError, reworded

STEPS = "number of steps"
_HELD = {
    "model": "the weights at the start, or the architecture",
    "precision": "the form of the saved state",
    "train.freeze": "which parameters have an optimizer state",
    "train.lora": "which parameters are trained",
    "base weights": "what the adapters are trained on",
    "train.global_batch": "the position in the data, which is counted in batches",
    "data.block_length": "the position in the data, which is counted in blocks",
}
_DATA = {"data", "data order", "seed"}


@dataclass(frozen=True)
class Origin:
    """A value of `resume_from` or `init_from`."""

    run: Path | None
    """Folder of a run or a checkpoint; None for this run's own."""
    step: str
    """A number, latest or best."""


def parse_origin(text: str) -> Origin:
    """STEP, `latest`, RUN or RUN:STEP."""
    if re.fullmatch(r"\d+|latest", text):
        return Origin(None, text)
    run, _, step = text.rpartition(":")
    if run and re.fullmatch(r"\d+|latest|best", step):
        return Origin(Path(run), step)
    return Origin(Path(text), "latest")


def find_origin(text: str, field: str) -> CheckpointInfo:
    """The complete checkpoint that RUN or RUN:STEP names; faults have the field `field`."""
    origin = parse_origin(text)
    if origin.run is None:
        remedy = "give RUN or RUN:STEP, with RUN the output folder of a run"
        raise UserError.of(field, "names no run", remedy, text)
    with reworded(lambda fault: replace(fault, field=field, value=text)):
        return choose(origin.run, origin.step)


def read_manifest(folder: Path) -> Checkpoint:
    """The manifest of a checkpoint that was verified."""
    return Checkpoint(**json.loads((folder / MANIFEST).read_text("utf-8")))


def changes(saved: dict[str, Any], identity: dict[str, Any]) -> dict[str, list[Any]]:
    """Name → [before, from now on] of everything that differs between two identities."""
    names = sorted(saved.keys() | identity.keys())
    return {
        name: [saved.get(name), identity.get(name)] for name in names if saved.get(name) != identity.get(name)
    }


def refuse_changes(saved: Checkpoint, identity: dict[str, Any], run: RunConfig, output: Path) -> Fault | None:
    """Why the run may not resume from a checkpoint, by its own folder's or by `resume_from`; None if it may.

    `output` is the folder of the checkpoint's run.
    """
    differing = changes(saved.identity, identity)
    own = run.resume_from is not None
    held = [name for name in differing if name in _HELD]
    if held:
        reasons = "; ".join(f"{name} fixes {_HELD[name]}" for name in held)
        start = f"add --init_from {output}"
        if run.train.lora is not None or "train.lora" in saved.identity:
            start = f"give {output / 'model'}, or an export of a checkpoint, as model.name"
        return Fault(
            "resume_from" if own else "output",
            f"holds checkpoints of another run: {', '.join(differing)} differ, and cannot change during a "
            f"run ({reasons})",
            f"choose another output folder; to start a new run from these weights {start}",
            str(output),
        )
    if saved.step > identity[STEPS]:
        return Fault(
            "train.steps",
            f"{saved.step} steps are done already",
            "give more steps, or resume an earlier checkpoint in another output folder: "
            f"--resume_from {output}:STEP",
            identity[STEPS],
        )
    if own or not differing or (set(differing) == {STEPS} and _unnoticed(saved, run)):
        return None
    listed = "; ".join(f"{name} {_short(old)} → {_short(new)}" for name, (old, new) in differing.items())
    return Fault(
        "output",
        f"holds checkpoints of another run: {', '.join(differing)} differ ({listed})",
        f"to change this from step {saved.step + 1} on, add --resume_from latest; otherwise choose another "
        "output folder",
        str(output),
    )


def check_own_step(saved: Checkpoint, step: str, output: Path) -> Fault | None:
    """Why the newest checkpoint of this folder is not the one that `resume_from: STEP` means."""
    begun = any(entry["step"] == int(step) for entry in saved.history) if step != "latest" else True
    if begun or saved.step == int(step):
        return None
    return Fault(
        "resume_from",
        f"the newest checkpoint of this folder is of step {saved.step}, and it is kept",
        f"add --output with a new folder, and --resume_from {output}:{step}",
        step,
    )


def data_start(saved: Checkpoint, differing: dict[str, list[Any]]) -> int:
    """The step after which the present data begin at their first block."""
    return saved.step if _DATA & differing.keys() else saved.data_start


def _unnoticed(saved: Checkpoint, run: RunConfig) -> bool:
    """Whether rates and weights of the done steps do not depend on the number of steps."""
    rate = run.train.schedule == "constant" or saved.step <= run.train.warmup_steps
    weight = run.guidance.schedule == "constant" or saved.step <= run.guidance.warmup_steps
    return rate and weight


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}…"
