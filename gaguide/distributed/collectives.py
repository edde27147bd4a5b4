"""Collectives over Python objects and small tensors; with a single process each is the identity.

torch is imported only where ranks have met, so that commands without ranks start fast.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gaguide.errors import Fault, LoneError, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def _is_alone() -> bool:
    if "torch" not in sys.modules:
        return True
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_world_size() == 1


def barrier() -> None:
    """Wait for every rank."""
    if not _is_alone():
        import torch.distributed as dist

        dist.barrier()


def all_gather(value: T) -> list[T]:
    """The picklable `value` of every rank, in order of rank."""
    if _is_alone():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Rank 0's picklable `value`, on every rank."""
    if _is_alone():
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def shared_clock() -> Callable[[], float]:
    """A clock that shows the same Unix seconds on every rank, whatever its host's clock shows (a collective).

    It follows rank 0's clock as it is now, to within the time of a message; a host's clock that is set later
    does not move it.
    """
    barrier()  # so that no rank receives rank 0's time long after it was sent
    began, at = broadcast(time.time()), time.monotonic()
    return lambda: began + (time.monotonic() - at)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place; `values` must be on the rank's device."""
    if not _is_alone():
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def raise_together(check: Callable[[], T]) -> T:
    """The result of `check` here; if it raises a `UserError` on any rank, every rank raises all faults.

    So no rank continues into a collective that the others never reach. A fault that not all ranks have,
    such as a file that is missing on one host, is reported with the rank's number.
    """
    faults: tuple[Fault, ...] = ()
    result: Any = None
    try:
        result = check()
    except UserError as error:
        faults = error.faults
    by_rank = all_gather(faults)
    if any(by_rank):
        raise UserError(_merge_faults(by_rank))
    return result


@contextmanager
def alone() -> Iterator[None]:
    """Inside, a `UserError` is this rank's alone, and raised as a `LoneError` that names the rank.

    For work in the middle of a step, where agreeing with the other ranks would cost too much.
    """
    try:
        yield
    except UserError as error:
        if _is_alone():
            raise
        import torch.distributed as dist

        raise LoneError(_of_rank(dist.get_rank(), fault) for fault in error.faults) from None


def _of_rank(rank: int, fault: Fault) -> Fault:
    return replace(fault, field=f"rank {rank}: {fault.field}")


def _merge_faults(by_rank: list[tuple[Fault, ...]]) -> list[Fault]:
    common = [fault for fault in by_rank[0] if all(fault in faults for faults in by_rank)]
    single = [
        _of_rank(rank, fault)
        for rank, faults in enumerate(by_rank)
        for fault in faults
        if fault not in common
    ]
    return common + single
