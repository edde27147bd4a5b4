"""Problems of examples that encoding reveals: tokens cut, demonstrations left out, joined tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from gaguide.config.fields import OnOverflow
from gaguide.errors import Fault
from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.encode.examples import by_task
from gaguide.evaluate.tasks.examples import list_some
from gaguide.evaluate.tasks.read import TaskData

OVERFLOWS: tuple[str, ...] = get_args(OnOverflow)
"""The values of `OnOverflow`."""


def overflow_warnings(
    data: Sequence[TaskData], encoded: Sequence[Sequence[EncodedPair]], positions: int
) -> Iterator[str]:
    """Sentences on examples that were cut, have fewer demonstrations, or join their prompts."""
    for task, pairs in by_task(data, encoded):
        ids = [example.id for example in task.examples]
        cut = {name: max(one.truncated for one in of) for name, of in zip(ids, pairs, strict=True)}
        cut = {name: tokens for name, tokens in cut.items() if tokens}
        dropped = {name: of[0].dropped for name, of in zip(ids, pairs, strict=True) if of[0].dropped}
        joined = [name for name, of in zip(ids, pairs, strict=True) if any(one.is_joined for one in of)]
        if joined:
            yield (
                f"task {task.task.name}: in {len(joined)} of {len(ids)} examples a continuation's first "
                "characters join the prompt's last token, so that only what follows is scored: begin it with "
                f"a space, or set `delimiter` in the task file ({list_some(joined)})"
            )
        if cut:
            yield (
                f"task {task.task.name}: {_share(cut, ids)} are longer than the model's {positions} "
                f"positions and were cut on the left, by {_range(cut)} tokens ({list_some(list(cut))})"
            )
        if dropped:
            yield (
                f"task {task.task.name}: {_share(dropped, ids)} have {_range(dropped)} fewer demonstrations, "
                f"to fit into the model's {positions} positions ({list_some(list(dropped))})"
            )


def overflow_faults(
    data: Sequence[TaskData], encoded: Sequence[Sequence[EncodedPair]], positions: int
) -> list[Fault]:
    """The faults under `fail`: one for each task with examples that do not fit."""
    remedy = "shorten them, ask for fewer demonstrations, or choose --on-overflow cut or drop-demonstrations"
    return [
        Fault("--on-overflow", text, remedy, "fail") for text in overflow_warnings(data, encoded, positions)
    ]


def _share(some: dict[str, int], ids: Sequence[str]) -> str:
    return f"{len(some)} of {len(ids)} examples ({len(some) / len(ids):.0%})"


def _range(some: dict[str, int]) -> str:
    least, most = min(some.values()), max(some.values())
    return str(most) if least == most else f"{least} to {most}"
