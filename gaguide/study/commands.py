"""The commands of a cell: launch/train.py and launch/evaluate.py, as a person would start them. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gaguide.errors import Fault, UserError
from gaguide.study.grid import REPOSITORY, Cell, Grid

RUN_FILE = "run.yaml"


def check_launchers() -> None:
    """Raise a `UserError` where gaguide was installed without its launch scripts."""
    if not (REPOSITORY / "launch" / "train.py").is_file():
        problem = "has no launch/train.py beside it"
        remedy = "install a clone of the repository with pip install -e ."
        raise UserError(Fault("gaguide", problem, remedy, str(REPOSITORY)))


def train_command(grid: Grid, cell: Cell, port: int) -> list[str]:
    """Train a cell from the run file in its folder."""
    config = grid.path(cell) / RUN_FILE
    arguments = ["--deepspeed", str(cell.ds_config), "--config", str(config)]
    return _launch(cell.ranks, port, "train.py", arguments)


def evaluate_command(grid: Grid, cell: Cell, port: int) -> list[str]:
    """Evaluate a cell's model on the study's tasks."""
    study, settings = grid.study, grid.study.evaluate
    assert cell.model is not None
    arguments = ["--model", cell.model, "--tasks", *study.tasks]
    arguments += ["--output", str(grid.path(cell) / "evaluation"), "--dtype", settings.dtype]
    if study.task_data is not None:
        arguments += ["--data", str(Path(study.task_data).expanduser())]
    if settings.batch_tokens is not None:
        arguments += ["--batch-tokens", str(settings.batch_tokens)]
    if settings.limit is not None:
        arguments += ["--limit", str(settings.limit)]
    return _launch(cell.ranks, port, "evaluate.py", arguments)


def _launch(ranks: int, port: int, script: str, arguments: Sequence[str]) -> list[str]:
    path = str(REPOSITORY / "launch" / script)
    if ranks == 1:
        return [sys.executable, path, *arguments]
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    launcher = [deepspeed, "--num_accelerators", str(ranks), "--master_port", str(port)]
    return [*launcher, path, *arguments]
