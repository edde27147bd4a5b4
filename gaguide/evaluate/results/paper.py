"""The models of the paper, and which column of its tables an evaluated model belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.files import read_object
from gaguide.log import run_files
from gaguide.model.sizes import GPT2_VOCABULARY, SIZES, Size

PaperColumn = tuple[str, str]
"""(model, experiment) as the paper's tables name them."""


@dataclass(frozen=True)
class PaperModel:
    """A model that the paper reports."""

    name: str
    """Its name in the paper's tables, on the hub and in task files."""
    size: Size
    """Its shape."""
    parameters: int
    """Number of parameters with GPT-2's vocabulary."""


PAPER_MODELS = (
    PaperModel("gpt2", SIZES["gpt2"], 124_439_808),
    PaperModel("gpt2-medium", SIZES["gpt2-medium"], 354_823_168),
)
"""Every model of the paper."""


def find_paper_model(parameters: int) -> str | None:
    """Name of the paper's model with this number of parameters; None where there is none."""
    return next((model.name for model in PAPER_MODELS if model.parameters == parameters), None)


def find_paper_column(name: str, config: Any) -> PaperColumn | None:
    """The paper's column for a model; None where it has none.

    A hub name is the paper's `original`. A folder `RUN/model` that training wrote is the experiment in
    RUN/summary.json, or `finetuned` where its guidance weight was 0.
    """
    hub_name = name.removeprefix("openai-community/")
    if any(hub_name == model.name for model in PAPER_MODELS) and not Path(name).exists():
        return hub_name, "original"
    experiment = _read_experiment(Path(name).parent / run_files.SUMMARY)
    if experiment is None or getattr(config, "vocab_size", None) != GPT2_VOCABULARY:
        return None
    shape = getattr(config, "n_layer", None), getattr(config, "n_head", None), getattr(config, "n_embd", None)
    for model in PAPER_MODELS:
        if (model.size.layers, model.size.heads, model.size.width) == shape:
            return model.name, experiment
    return None


def paper_accuracy(paper: Mapping[str, Mapping[str, float]], column: PaperColumn | None) -> float | None:
    """The accuracy in a task's `paper` entry for a column; None where there is none."""
    return None if column is None else paper.get(column[0], {}).get(column[1])


def _read_experiment(summary: Path) -> str | None:
    content = read_object(summary)
    if not {"guidance_weight", "experiment"} <= content.keys():
        return None
    return str(content["experiment"]) if content["guidance_weight"] else "finetuned"
