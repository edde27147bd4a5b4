"""A step's numbers to TensorBoard, W&B and CSV, through DeepSpeed's monitor.

They are for looking at; metrics.jsonl is the record. So their faults never end a run.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gaguide.distributed import World
from gaguide.errors import Fault, UserError
from gaguide.files import write_text
from gaguide.log import say

_SHOWN = (
    "loss", "lm_loss", "guidance_loss", "guided_attention", "grad_norm", "lr", "tokens_per_second", "mfu",
    "peak_memory", "guidance_weight",
)  # fmt: skip
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_monitors(deepspeed: Mapping[str, Any], world: World) -> None:
    """Raise a `UserError` for every monitor that is enabled and could not write: no package, no login."""
    enabled = [section for section in _PACKAGES if deepspeed.get(section, {}).get("enabled")]
    faults = [
        Fault(
            f"{section} (DeepSpeed JSON)",
            f"the package {_PACKAGES[section]} is not installed",
            f"pip install '{_PACKAGES[section]}' (or 'gaguide[monitor]'), or remove the section",
        )
        for section in enabled
        if find_spec(_PACKAGES[section]) is None
    ]
    if not faults and "wandb" in enabled and world.is_main and not _wandb_has_a_place():
        problem = "nobody is logged in to Weights & Biases here"
        remedy = "wandb login, or export WANDB_MODE=offline and run `wandb sync` afterwards"
        faults.append(Fault("wandb (DeepSpeed JSON)", problem, remedy))
    if faults:
        raise UserError(faults)


def _wandb_has_a_place() -> bool:
    """Whether W&B has a key, or does not need one; nothing is sent."""
    import wandb

    try:
        offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
        return offline or wandb.login(prompt=False, verify=False)
    finally:
        wandb.teardown()  # or what `place_wandb` sets would be ignored: the environment is read once


def place_wandb(deepspeed: Mapping[str, Any], output: Path, name: str) -> None:
    """Tell W&B the run's name and folder, which DeepSpeed's section has no words for."""
    if deepspeed.get("wandb", {}).get("enabled"):
        (output / "monitor").mkdir(exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(output / "monitor"))
        os.environ.setdefault("WANDB_NAME", name)


def tame_monitors(engine: Any, samples: int) -> None:
    """Let a full disk end no run, and let CSV files go on after `samples` sequences as one table."""
    write = engine.monitor.write_events
    silent = False

    def write_or_say(events: Sequence[tuple[str, float, int]]) -> None:
        nonlocal silent
        try:
            write(events)
        except OSError as error:
            if not silent:
                say(f"a monitor of the DeepSpeed JSON cannot write ({error.strerror or error})")
            silent = True

    engine.monitor.write_events = write_or_say
    files = getattr(engine.monitor, "csv_monitor", None)
    if files is not None and samples:
        for path in Path(files.log_dir).glob("*.csv"):
            _cut_csv(path, samples)
            files.filenames.append(path.stem)  # its first line is there


def _cut_csv(path: Path, samples: int) -> None:
    """Leave out the rows that a resumed run is about to make again."""
    header, *rows = csv.reader(path.read_text("utf-8").splitlines())
    text = io.StringIO()
    kept = [row for row in rows if len(row) == 2 and row[0].isdigit() and int(row[0]) <= samples]
    csv.writer(text).writerows([header, *kept])
    write_text(path, text.getvalue())


def write_to_monitors(engine: Any, record: Mapping[str, Any], samples: int) -> None:
    """Write one step's record; `samples` is the axis that DeepSpeed itself uses for its learning rate."""
    if not engine.monitor.enabled:
        return
    events = [(f"Train/{name}", record[name], samples) for name in _SHOWN if record.get(name) is not None]
    engine.monitor.write_events(events)
