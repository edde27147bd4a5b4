"""Command lines that train, evaluate and ablate a cell, by gaguide's programs. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gaguide.study.grid import Cell, Grid

RUN_FILE = "run.yaml"


def train_command(grid: Grid, cell: Cell, port: int) -> list[str]:
    """The command that trains a cell from the run file in its folder."""
    config = grid.path(cell) / RUN_FILE
    arguments = ["--deepspeed", str(cell.ds_config), "--config", str(config)]
    return _launch("gaguide.train", arguments, cell.ranks, port)


def evaluate_command(grid: Grid, cell: Cell, port: int) -> list[str]:
    """The command that evaluates a cell's model on the study's tasks."""
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
    if settings.shots is not None:
        arguments += ["--shots", str(settings.shots)]
    arguments += ["--on-overflow", settings.on_overflow]
    return _launch("gaguide.evaluate", arguments, cell.ranks, port)


def ablate_command(grid: Grid, cell: Cell, port: int) -> list[str]:
    """The command that removes the heads of a cell's model; one process, whatever the cell's ranks."""
    folder, settings = grid.path(cell), grid.study.ablation
    assert cell.model is not None and settings is not None
    arguments = ["--model", cell.model, "--plan", str(folder / RUN_FILE), "--before", "start"]
    arguments += ["--methods", *settings.methods, "--controls", str(settings.controls)]
    arguments += ["--blocks", str(settings.blocks), "--seed", str(settings.seed)]
    arguments += ["--dtype", grid.study.evaluate.dtype, "--output", str(folder / "ablation")]
    return _launch("gaguide.ablate", arguments, 1, port)


def _launch(module: str, arguments: Sequence[str], ranks: int, port: int) -> list[str]:
    """The command that runs a module with this interpreter on `ranks` ranks of this machine."""
    if ranks == 1:
        return [sys.executable, "-m", module, *arguments]
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    launcher = [deepspeed, "--num_accelerators", str(ranks), "--master_port", str(port)]
    return [*launcher, "--module", module, *arguments]
