"""Evaluation during training, as a callable whose records training writes.

`gaguide.evaluate` decides what is evaluated and how; training does not import it, and the program that starts
training passes the callable in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from gaguide.distributed import World
from gaguide.guidance import Guidance
from gaguide.train.job import Job


class Evaluation(Protocol):
    """A callable that training calls every few steps, on all ranks."""

    @property
    def measure(self) -> str:
        """Identifies the content of the tasks and how they are scored; only equal measures are compared."""

    def __call__(self, model: PreTrainedModel, tick: Callable[[], None], /) -> Mapping[str, Any]:
        """The record of `model`; `tick` is called regularly, as a sign of life."""


MakeEvaluation = Callable[[Job, World], Evaluation | None]
"""Makes the evaluation of `run.evaluate`; raises `UserError` on all ranks before step 1."""


@contextmanager
def undisturbed(model: PreTrainedModel, guidance: Guidance | None) -> Iterator[None]:
    """Inside, the model computes as after export; afterwards training continues undisturbed."""
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
