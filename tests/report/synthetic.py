"""Run folders as the trainer and the evaluator write them, with made-up numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = '</pre><script>alert(1)</script> $x_1^2$ \\input{a} & 100% #1 {~}|*b*[c](d) naïve 日 "q" \''
"""A name that is code in every format of a report."""
VERSIONS = {"gaguide": "0.1.0", "torch": "2.13.0"}


def write_run(
    folder: Path,
    name: str,
    *,
    experiment: str = "finetuned",
    attention: tuple[float | None, float | None] | None = (0.02, 0.03),
    loss: tuple[float, float | None] = (7.6, 4.771),
    finished: bool = True,
    scores: dict[str, float] | None = None,
    measure: str | None = None,
    **summary: Any,
) -> Path:
    """A run of 300 steps; `attention` and `loss` are held-out, before and after; returns `folder`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {name!r}\nguidance:\n  experiment: {experiment}\n")
    steps = range(10, 301, 10)
    rises = [1 - math.exp(-step / 60) for step in steps]
    _lines(folder / "metrics.jsonl", [
        {
            "step": step,
            "loss": loss[0] + ((loss[1] or 0) - loss[0]) * rise,
            "lm_loss": loss[0] + ((loss[1] or 0) - loss[0]) * rise,
            "guided_attention": attention
            and (None if attention[0] is None else attention[0] + (attention[1] - attention[0]) * rise),
            "seconds": step / 4,
        }
        for step, rise in zip(steps, rises, strict=True)
    ])  # fmt: skip
    ends = [
        {
            "lm_loss": loss[at],
            "guided_attention": attention and attention[at],
            "per_head": [
                {"layer": layer, "head": 0, "pattern": "contrast", "attention": attention[at]}
                for layer in range(4)
            ]
            if attention
            else [],
            "blocks": 64,
            "measure": measure,
        }
        for at in (0, 1)
    ]
    if finished:
        record = {
            "name": name, "experiment": experiment, "guidance_weight": 10.0, "steps": 300, "tokens": 614_400,
            "seconds": 75.0, "world_size": 2, "validation": {"before": ends[0], "after": ends[1]},
            "versions": VERSIONS, "fingerprints": {"data": "d1", "tokenizer": "t1", "order": "o1"},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(record | summary))
    if scores is not None:
        tasks = {
            task: {
                "count": 100,
                "chance": 0.5,
                "metrics": {"acc": {"value": acc, "low": acc - 0.1, "high": acc + 0.1}},
            }
            for task, acc in scores.items()
        }
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "results.json").write_text(json.dumps({"tasks": tasks}))
    return folder


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
