"""A step's numbers for TensorBoard, W&B and CSV, written through DeepSpeed's monitor.

Monitors are for watching a run; metrics.jsonl is its record. So their faults never end a run.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gaguide.distributed import World
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.errors import Fault, FaultCollector
from gaguide.files import write_text
from gaguide.log import say
from gaguide.trackers import STEP_NUMBERS, tracker_faults
from gaguide.trackers.notes import read_note, write_note

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_monitors(config: DeepSpeedConfig, world: World) -> None:
    """Raise a `UserError` for every enabled monitor or tracker that could not write: package missing, not
    logged in."""
    enabled = [section for section in _PACKAGES if config.is_enabled(section)]
    with FaultCollector() as faults:
        faults.add(*tracker_faults(config.settings))
        for section in enabled:
            package = _PACKAGES[section]
            if find_spec(package) is None:
                remedy = f"pip install '{package}' (or 'gaguide[monitor]'), or remove the section"
                problem = f"the package {package} is not installed"
                faults.add(Fault(f"{section} (DeepSpeed JSON)", problem, remedy))
        if "wandb" in enabled and find_spec("wandb") and world.is_main and not _wandb_can_write():
            problem = "no user is logged in to Weights & Biases here"
            remedy = "run `wandb login`, or export WANDB_MODE=offline and run `wandb sync` afterwards"
            faults.add(Fault("wandb (DeepSpeed JSON)", problem, remedy))


def _wandb_can_write() -> bool:
    """Whether W&B has a key, or does not need one; sends nothing."""
    import wandb

    try:
        offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
        return offline or wandb.login(prompt=False, verify=False)
    finally:
        wandb.teardown()  # it reads the environment once, before `configure_wandb` has set it


def configure_wandb(config: DeepSpeedConfig, output: Path, name: str, settings: str) -> None:
    """Set W&B's environment variables for the run's name, folder and id, which DeepSpeed's section cannot.

    A resumed run has the same id, as long as `settings`, a hash of all that decides its numbers, is the same.
    """
    if not config.is_enabled("wandb"):
        return
    place = output / "monitor"
    place.mkdir(exist_ok=True)
    os.environ.setdefault("WANDB_DIR", str(place))
    os.environ.setdefault("WANDB_NAME", name)
    if "WANDB_RUN_ID" not in os.environ:
        kept = read_note(place, "wandb")
        id = kept["id"] if kept.get("settings") == settings else secrets.token_hex(4)
        write_note(place, "wandb", id, settings)
        os.environ |= {"WANDB_RUN_ID": id, "WANDB_RESUME": "allow"}


def resume_monitors(engine: DeepSpeedEngine, samples: int) -> None:
    """Report disk errors once instead of raising them, and continue CSV files after `samples` sequences."""
    write = engine.monitor.write_events
    has_failed = False

    def write_or_report(events: Sequence[tuple[str, float, int]]) -> None:
        nonlocal has_failed
        try:
            write(events)
        except OSError as error:
            if not has_failed:
                say(f"a monitor of the DeepSpeed JSON cannot write ({error.strerror or error})")
            has_failed = True

    engine.monitor.write_events = write_or_report
    csv_monitor = getattr(engine.monitor, "csv_monitor", None)
    if csv_monitor is not None:
        for path in Path(csv_monitor.log_dir).glob("*.csv"):
            _truncate_csv(path, samples)
            csv_monitor.filenames.append(path.stem)  # or DeepSpeed would write a second header


def _truncate_csv(path: Path, samples: int) -> None:
    """Remove the rows that a resumed run is about to write again."""
    header, *rows = csv.reader(path.read_text("utf-8").splitlines())
    text = io.StringIO()
    kept = [row for row in rows if len(row) == 2 and row[0].isdigit() and int(row[0]) <= samples]
    csv.writer(text).writerows([header, *kept])
    write_text(path, text.getvalue())


def write_monitors(engine: DeepSpeedEngine, record: Mapping[str, object], samples: int) -> None:
    """Write a step's record; `samples` is the axis that DeepSpeed uses for its learning rate."""
    if not engine.monitor.enabled:
        return
    events = [
        (f"Train/{name}", record[name], samples) for name in STEP_NUMBERS if record.get(name) is not None
    ]
    engine.monitor.write_events(events)
