"""The split of the global batch over ranks and accumulation steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaguide.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """A split: global_batch = micro_batch × accumulation × world_size, in sequences."""

    global_batch: int
    """Sequences in one optimizer step."""
    micro_batch: int
    """Sequences per rank in one forward pass."""
    accumulation: int
    """Forward passes per rank in one optimizer step."""
    world_size: int
    """Number of ranks."""


def divisors(share: int) -> list[int]:
    """Micro batches that divide a rank's share of the global batch, ascending."""
    return [size for size in range(1, min(share, 10_000) + 1) if share % size == 0]


def plan_batch(global_batch: int, micro_batch: int | Literal["auto"] | None, world_size: int) -> BatchPlan:
    """Split the global batch; without `micro_batch`, or with `auto`, a rank's share is one forward pass.

    Raises a `UserError` if the numbers do not divide.
    """
    if global_batch % world_size:
        near = max(world_size, round(global_batch / world_size) * world_size)
        raise UserError.of(
            "train.global_batch",
            f"must be divisible by the {world_size} ranks",
            f"use a multiple of {world_size}, e.g. {near}, or another number of ranks",
            global_batch,
        )
    share = global_batch // world_size
    if micro_batch is None or micro_batch == "auto":
        micro_batch = share
    if share % micro_batch:
        raise UserError.of(
            "train.micro_batch",
            f"must divide a rank's share of {share} sequences (global batch {global_batch}, "
            f"{world_size} ranks)",
            f"use one of {', '.join(map(str, divisors(share)[-12:]))}",
            micro_batch,
        )
    return BatchPlan(global_batch, micro_batch, share // micro_batch, world_size)
