"""Finished cells with made-up answers, in the files that training and evaluation write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gaguide.evaluate.results.metrics import chance_level, score_example, summarize
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.evaluate.results.write import write_results
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData
from gaguide.evaluate.tasks.task import Task
from gaguide.files import write_json
from gaguide.model import SIZES, scratch_config
from gaguide.study.grid import Cell, Grid
from gaguide.study.state import CellState, write_state

TASK = "quiz"


def finish(
    grid: Grid,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    margin: Callable[[Cell, int], float],
    loss: Callable[[Cell], float],
) -> None:
    """Give every cell of `grid` its files; `margin` is log p(answer) − log p(other) of a cell's example."""
    for cell in grid.cells:
        folder = grid.path(cell)
        (folder / "model").mkdir(parents=True)
        if cell.run is not None:
            config = scratch_config(SIZES[cell.size], len(tokenizer), None)
            config.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
            _summary(cell, folder, loss)
        if cell.model is not None:
            margins = [margin(cell, at) for at in range(len(prompts))]
            _evaluation(folder / "evaluation", prompts, margins)
        seconds = {"train": {"wall": 2.0, "cpu": 1.5}}
        contents = {name: of.identity for name, of in grid.tasks.contents.items()}
        write_state(folder, CellState("done", None, grid.evaluation, None, seconds, contents))


def _summary(cell: Cell, folder: Path, loss: Callable[[Cell], float]) -> None:
    def measured(lm_loss: float, attention: float) -> dict[str, object]:
        head = {"layer": 1, "head": 0, "pattern": "contrast", "attention": attention}
        near = {"lexicon": "negation", "content": "c", "bands": {
            "on": {"loss": lm_loss - 1, "tokens": 1}, "1-5": {"loss": None, "tokens": 0},
            "6-20": {"loss": lm_loss, "tokens": 3}, "rest": {"loss": lm_loss, "tokens": 96},
        }}  # fmt: skip
        return {"lm_loss": lm_loss, "guided_attention": attention, "per_head": [head], "blocks": 4,
                "near_cue": near}  # fmt: skip

    ends = {"before": measured(6.0, 0.02), "after": measured(loss(cell), 0.9)}
    write_json(folder / "summary.json", {"validation": ends, "tokens": 100, "fingerprints": {"data": "d"}})


def _evaluation(folder: Path, prompts: Sequence[str], margins: Sequence[float]) -> None:
    examples = [Example(str(at), (prompt,), (" yes", " no"), 0) for at, prompt in enumerate(prompts)]
    scored = [
        score_example("classification", example, (margin, 0.0), (1, 1))
        for example, margin in zip(examples, margins, strict=True)
    ]
    task = Task(name=TASK, kind="classification")
    data = TaskData(task, "classification", "made up", None, tuple(examples), len(examples), ())
    result = TaskResult(
        data, summarize("classification", scored), chance_level("classification", examples), tuple(scored)
    )
    write_results(
        Results(
            "model", {TASK: result}, {"dtype": "fp32", "limit": None, "device": "cpu"}, 1, {"total": 1.0}, {}
        ),
        folder,
    )
