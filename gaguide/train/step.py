"""One optimizer step: forward and backward of every micro batch, and the step's means over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gaguide.distributed import all_reduce_sum
from gaguide.engine.engine import Engine
from gaguide.guidance import Guidance
from gaguide.train.device import held_memory
from gaguide.train.inputs import Inputs


@dataclass(frozen=True)
class StepNumbers:
    """Means over the global batch of one step."""

    loss: float
    """`lm_loss` + `guidance_loss`."""
    lm_loss: float
    """Next-token cross-entropy, a mean over the tokens that count."""
    guidance_loss: float | None
    """Weighted guidance loss; None in an unguided run."""
    guided_attention: float | None
    """Mean over guided heads of their attention mass on the targets; None where no query sees a target."""
    grad_norm: float | None
    """2-norm of the whole gradient before clipping."""
    peak_memory: int
    """Most bytes that any rank has used: allocated on its GPU, or else resident."""


def train_step(
    engine: Engine,
    guidance: Guidance | None,
    micro_batches: Iterable[Inputs],
    learning_rate: float,
    logged: bool,
) -> tuple[StepNumbers | None, bool]:
    """Run one step on this rank's micro batches; returns its numbers and whether it was dropped.

    Both are the same on every rank. The numbers, which take one collective and wait for the device once, are
    None unless `logged`.
    """
    if guidance is not None and guidance.measure_only:
        guidance.enabled = logged
    sums = _Sums(guidance, engine)
    for inputs in micro_batches:
        lm_loss = engine.lm_loss(inputs)
        active = guidance is not None and guidance.enabled
        guidance_loss = guidance.loss() if guidance is not None and active else None
        # All micro batches have the same number of tokens, or divide by a common number: see `Trainer`.
        engine.backward(lm_loss if guidance_loss is None else lm_loss + guidance_loss)
        if logged:
            sums.add(lm_loss, guidance_loss)
    outcome = engine.step(learning_rate, with_norm=logged)
    return sums.reduce(outcome.grad_norm) if logged else None, outcome.dropped


class _Sums:
    """Sums over micro batches and ranks, kept on the device until all are read at once."""

    def __init__(self, guidance: Guidance | None, engine: Engine) -> None:
        self.guidance, self.world = guidance, engine.world
        self.heads = len(guidance.heads) if guidance else 0
        # Micro batches, LM loss, guidance loss, then mass × queries and queries of each head, then each
        # rank's memory: a sum to which only one rank contributes a number other than 0.
        size = 3 + 2 * self.heads + self.world.size
        self.values = torch.zeros(size, dtype=torch.float64, device=engine.device)

    def add(self, lm_loss: torch.Tensor, guidance_loss: torch.Tensor | None) -> None:
        self.values[0] += 1
        self.values[1] += lm_loss.detach()
        if self.guidance is not None and guidance_loss is not None:
            self.values[2] += guidance_loss.detach()
            self.values[3 : 3 + 2 * self.heads] += self.guidance.attention_sums().flatten()

    def reduce(self, grad_norm: torch.Tensor | float | None) -> StepNumbers:
        self.values[3 + 2 * self.heads + self.world.rank] = held_memory(self.values.device)
        values = all_reduce_sum(self.values)
        if isinstance(grad_norm, torch.Tensor):
            values = torch.cat([values, grad_norm.to(values).reshape(1)])
        count, lm_loss, guidance_loss, *rest = values.tolist()
        norm = rest.pop() if isinstance(grad_norm, torch.Tensor) else grad_norm
        heads, memory = rest[: 2 * self.heads], rest[2 * self.heads :]
        lm_loss, guidance_loss, peak = lm_loss / count, guidance_loss / count, int(max(memory))
        if self.guidance is None:
            return StepNumbers(lm_loss, lm_loss, None, None, norm, peak)
        pairs = zip(heads[: self.heads], heads[self.heads :])
        seen = [mass / queries for mass, queries in pairs if queries]
        attention = sum(seen) / len(seen) if seen else None
        return StepNumbers(lm_loss + guidance_loss, lm_loss, guidance_loss, attention, norm, peak)
