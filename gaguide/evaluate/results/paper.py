"""Which column of the study's tables a model is, so that its accuracies can stand beside the printed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaguide.model.sizes import GPT2_VOCABULARY, SIZES

_REPORTED = ("gpt2", "gpt2-medium")

Published = tuple[str, str]
"""(model, experiment) as the study's tables name them."""


def published(name: str, config: Any) -> Published | None:
    """The study's column for a model; None where it has none.

    A hub name is the study's `original`. A folder `RUN/model` that `launch/train.py` wrote is the experiment
    that RUN/summary.json names, or `finetuned` where its guidance weight was 0.
    """
    size = name.removeprefix("openai-community/")
    if size in _REPORTED and not Path(name).exists():
        return size, "original"
    shape = getattr(config, "n_layer", None), getattr(config, "n_head", None), getattr(config, "n_embd", None)
    experiment = _experiment(Path(name).parent / "summary.json")
    if experiment is None or getattr(config, "vocab_size", None) != GPT2_VOCABULARY:
        return None
    for reported in _REPORTED:
        if (SIZES[reported].layers, SIZES[reported].heads, SIZES[reported].width) == shape:
            return reported, experiment
    return None


def reported_accuracy(paper: Mapping[str, Mapping[str, float]], column: Published | None) -> float | None:
    """The accuracy that a task's `paper` entry holds for a column."""
    return None if column is None else paper.get(column[0], {}).get(column[1])


def _experiment(summary: Path) -> str | None:
    try:
        content = json.loads(summary.read_text("utf-8"))
        return "finetuned" if not content["guidance_weight"] else str(content["experiment"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
