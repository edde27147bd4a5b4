"""Evaluation during training, as training sees it: something to call, whose records it writes.

What is evaluated and how is decided by `gaguide.evaluate`, which training does not know; launch/train.py
puts both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.distributed import World
from gaguide.guidance import Guidance
from gaguide.train.job import Job

Evaluation = Callable[[PreTrainedModel, Callable[[], None]], Mapping[str, Any]]
"""Called by all ranks with the model and a function to be called now and then; gives a record on all."""
MakeEvaluation = Callable[[Job, World], Evaluation | None]
"""What `run.evaluate` asks for; raises `UserError` on all ranks before the first step."""


@contextmanager
def undisturbed(model: PreTrainedModel, guidance: Guidance | None) -> Iterator[None]:
    """Inside, the model evaluates as it would after export; training goes on as if nothing had been."""
    was_training, was_enabled = model.training, guidance is not None and guidance.enabled
    model.eval()
    if guidance is not None:
        guidance.enabled = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if guidance is not None:
            guidance.enabled = was_enabled
        model.train(was_training)
