"""The paper's Tables 1 and 2, as the task files carry them, against the paper's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.evaluate.tasks.task import built_in_tasks

PAPER = Path(__file__).parents[3] / "shared" / "paper.txt"
COLUMNS = ("original", "finetuned", "1-negation", "3-negation", "4-transition")


@pytest.mark.skipif(not PAPER.is_file(), reason=f"no text of the paper at {PAPER}")
def test_every_number_is_the_papers() -> None:
    printed: dict[str, dict[str, dict[str, float]]] = {}
    model = None
    for line in PAPER.read_text("utf-8").splitlines():
        name, *numbers = line.split("\t")
        if line.startswith("\tGPT2"):
            model = "gpt2-medium" if "Medium" in line else "gpt2"
        elif line.startswith("Table"):
            model = None
        elif model and name:
            printed.setdefault(name, {})[model] = dict(zip(COLUMNS, map(float, numbers), strict=True))
    assert sum(len(models) for models in printed.values()) == 20
    ours = {name: dict(task.paper) for name, task in built_in_tasks().items() if task.paper}
    assert ours == printed
