"""Bytes that one rank sends in an optimizer step, by collective, as DeepSpeed 0.19 makes them.

Ring collectives over N ranks: an all-reduce of S bytes sends 2 S (N-1)/N a rank, reduce-scatter and
all-gather S (N-1)/N each (Patarasuk & Yuan 2009; ZeRO, arXiv:1910.02054, section 7: stages 0 to 2 send 2 P
elements, stage 3 3 P). `benchmarks/plan.py` compares the payloads with DeepSpeed's comms logger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaguide.cost.memory import WEIGHT_BYTES, MemorySetup
from gaguide.model import ModelShape

Operation = Literal["all_reduce", "reduce_scatter", "all_gather"]


@dataclass(frozen=True)
class Collective:
    """One kind of collective in a step.

    payload: bytes of the whole tensor that is reduced or gathered, summed over `calls`. hidden: it runs while
    the GPU computes, as far as there is something to compute.
    """

    name: str
    operation: Operation
    payload: int
    calls: int
    hidden: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that one rank sends in a ring."""
        passes = 2 if self.operation == "all_reduce" else 1
        return passes * self.payload * (ranks - 1) / ranks


def collectives(shape: ModelShape, setup: MemorySetup) -> tuple[Collective, ...]:
    """Everything that a step moves between ranks; empty for one rank."""
    if setup.ranks == 1:
        return ()
    P, width, times = shape.parameters, WEIGHT_BYTES[setup.precision], setup.accumulation
    buckets = -(-P // max(setup.bucket, 1))
    if setup.zero_stage == 0:
        return (Collective("gradients", "all_reduce", width * P, buckets),)
    if setup.zero_stage in (1, 2):
        often = times if setup.zero_stage == 2 else 1
        return (
            Collective("gradients", "all_reduce", often * width * P, often * buckets, setup.overlap),
            Collective("updated weights", "all_gather", width * P, 2),
        )
    # Forward and backward each gather the weights, and tied embeddings once more each for the output layer.
    # What is still there from the use before is not gathered again.
    again = P + (2 * shape.head_matrix if shape.tied else 0)
    again -= again * min(P, setup.kept_parameters) // P
    gathered = times * width * (P + again)
    return (
        Collective("weights", "all_gather", gathered, gathered // (width * setup.gather) + 1, setup.overlap),
        Collective("gradients", "reduce_scatter", times * width * P, times * buckets, setup.overlap),
    )
