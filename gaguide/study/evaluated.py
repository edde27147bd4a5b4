"""Results of the evaluated cells of a study: metrics, every example's outcome, held-out text, size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER, GROUP_ACC, Doubt
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples
from gaguide.evaluate.results.paper import find_paper_model
from gaguide.files import hash_json
from gaguide.guidance.cues import NEAR
from gaguide.model import shape_of
from gaguide.numbers import finite
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import HELD_OUT, Result
from gaguide.study.state import evaluation_file, is_complete, read_summary


@dataclass(frozen=True)
class NearCue:
    """Held-out loss of the tokens on a cue or up to 20 tokens after it."""

    lexicon: str
    """Name of the lexicon whose words are the cues."""
    content: str
    """Hash of the cues; losses near different cues are never compared."""
    loss: float
    """Mean loss in nats per token."""


@dataclass(frozen=True)
class Evaluated:
    """A finished cell that was evaluated."""

    cell: Cell
    """The cell."""
    folder: Path
    """Its folder."""
    parameters: int
    """Parameters of its model."""
    tasks: Mapping[str, Any]
    """Task → its record in results.json."""
    held_out: Mapping[str, float]
    """lm_loss and guided_attention after training, as far as they were measured."""
    near_cue: NearCue | None = None
    """Held-out loss near the words of `validation.near_cue`; None where it was not measured."""

    @cached_property
    def examples(self) -> Mapping[str, TaskExamples]:
        """Task → its examples."""
        found = read_examples(self.folder / "evaluation")
        return {name: examples for name, examples in found.items() if name in self.tasks}

    def main_metric(self, task: str) -> str:
        """The metric that the evaluator lists first."""
        return HELD_OUT_METRIC if task == HELD_OUT else next(iter(self.tasks[task]["metrics"]))

    def value(self, task: str, metric: str) -> float | None:
        """The cell's value of a metric; None where it is missing or not finite."""
        if task == HELD_OUT:
            return self.held_out.get(metric)
        found = self.tasks.get(task, {"metrics": {}})["metrics"].get(metric)
        return None if found is None else finite(found["value"])

    def doubt(self, task: str, metric: str) -> Doubt | None:
        """Why an accuracy says nothing about the model's answers; None where it does, or is not known."""
        found: Mapping[str, Any] = self.tasks.get(task, {}).get("uninformative", {})
        reason = found.get(metric, {}).get("reason")
        if reason is None and metric == GROUP_ACC:  # evaluations of earlier versions doubt `acc` only
            return "constant" if self.doubt(task, "acc") == "constant" else None
        return reason


HELD_OUT_METRIC = "lm_loss"


def read_evaluated(grid: Grid) -> list[Evaluated]:
    """Every cell of the study that is complete and was evaluated, in the grid's order."""
    found = []
    for cell in grid.cells:
        if cell.model is not None and is_complete(grid, cell):
            folder, held_out = grid.path(cell), _held_out(grid, cell)
            results = json.loads(evaluation_file(folder).read_text("utf-8"))
            found.append(
                Evaluated(
                    cell, folder, count_parameters(str(cell.model)), results["tasks"],
                    _losses(held_out, tuned=cell.run is not None), _near_cue(held_out),
                )
            )  # fmt: skip
    return found


def evaluation_fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprints of the tasks that a cell was evaluated on and of the code; empty before evaluation."""
    path = evaluation_file(folder)
    if not path.is_file():
        return {}
    record = json.loads(path.read_text("utf-8"))
    tasks = {name: task.get("content", task["sha256"]) for name, task in record["tasks"].items()}
    digest = hash_json(tasks)
    return {"tasks": digest} | ({"evaluation code": record["code"]} if "code" in record else {})


def count_parameters(model: str) -> int:
    """Number of parameters of a model folder or hub model, from its configuration."""
    return shape_of(AutoConfig.from_pretrained(model, trust_remote_code=False), with_saved=False).parameters


def results_of(one: Evaluated) -> list[Result]:
    """The rows of one cell in results.parquet."""
    cell, model = one.cell, _paper_model(one)
    key = (cell.size, one.parameters, cell.experiment)
    rows = [
        Result(
            *key, name, metric, BETTER.get(metric), cell.id, cell.seed, task["kind"], value["value"],
            finite(value["stderr"]), finite(value["low"]), finite(value["high"]), task["count"],
            task["chance"] if metric in ACCURACIES else None,
            task["paper"].get(model, {}).get(cell.experiment) if metric == "acc" else None,
            one.doubt(name, metric),
            (task.get("truncated") or {}).get("count", 0),
        )
        for name, task in one.tasks.items()
        for metric, value in task["metrics"].items()
        if finite(value["value"]) is not None
    ]  # fmt: skip
    return rows + [
        Result(*key, HELD_OUT, metric, BETTER.get(metric), cell.id, cell.seed, "validation", value)
        for metric, value in one.held_out.items()
    ]


def _paper_model(one: Evaluated) -> str:
    """Name of the paper's model with this number of parameters; "" where there is none.

    The paper fine-tuned published weights, so a model that started from random ones here is not the paper's.
    """
    run = one.cell.run
    scratch = one.cell.base is not None or (run is not None and run.model.init == "scratch")
    return "" if scratch else find_paper_model(one.parameters) or ""


def _held_out(grid: Grid, cell: Cell) -> Mapping[str, Any]:
    """Record of the validation after training; an original's is that of a tuned cell before training."""
    if cell.run is not None:
        return _validation(grid, cell, "after")
    for other in grid.cells:
        run = other.run
        starts_here = run is not None and run.model.init == "pretrained" and other.size == cell.size
        if other.role == "tuned" and starts_here and other.base == cell.base:
            found = _validation(grid, other, "before")
            if _losses(found, tuned=False):
                return found
    return {}


def _validation(grid: Grid, cell: Cell, when: str) -> Mapping[str, Any]:
    return read_summary(grid.path(cell)).get("validation", {}).get(when) or {}


def _losses(record: Mapping[str, Any], *, tuned: bool) -> dict[str, float]:
    """The measures of a validation; an original has no heads of its own, hence no attention."""
    names = (HELD_OUT_METRIC, "guided_attention") if tuned else (HELD_OUT_METRIC,)
    return {name: record[name] for name in names if finite(record.get(name)) is not None}


def _near_cue(record: Mapping[str, Any]) -> NearCue | None:
    """The loss near cues, over all tokens of the bands that are near; None without such a token, and where a
    loss is not finite."""
    near = record.get("near_cue")
    if near is None:
        return None
    bands = [near["bands"][name] for name in NEAR if name in near["bands"]]
    known = [(band["loss"], band["tokens"]) for band in bands if band["tokens"]]
    if not known or any(finite(loss) is None for loss, _ in known):  # a model that has diverged
        return None
    mean = math.fsum(loss * tokens for loss, tokens in known) / sum(tokens for _, tokens in known)
    return NearCue(near["lexicon"], near["content"], mean)
