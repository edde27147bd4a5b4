"""Spans that a task's data give, as marks of the tokens of its sequences: to measure attention on them, and
as targets of the pattern `spans:MARK`.

The pattern finds sequences by their tokens: an intervention on edges computes each as a row of its own, which
may be padded on the right.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gaguide.data.build.encode_row import mark_tokens, trim_stretch
from gaguide.data.format.encoder import DocumentEncoder
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.encode.examples import by_task
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData


@dataclass
class SpanMarks:
    """One mark of the sequences of some tasks."""

    name: str
    """Name of the mark."""
    known: dict[tuple[int, ...], tuple[bool, ...]] = field(default_factory=dict)
    """Input ids of a sequence → whether each has the mark."""

    def __call__(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """bool [B, T]; raises a `UserError` for a row that is not one of the sequences."""
        lengths = sorted({len(ids) for ids in self.known}, reverse=True)
        rows = [self._row(ids, lengths) for ids in ids_BT.tolist()]
        return torch.tensor(rows, device=ids_BT.device).reshape(ids_BT.shape)

    def _row(self, ids: Sequence[int], lengths: Sequence[int]) -> list[bool]:
        for length in lengths:
            found = self.known.get(tuple(ids[:length])) if length <= len(ids) else None
            if found is not None:
                return [*found, *[False] * (len(ids) - length)]
        problem = "is given by spans of examples, and this text is not one of those examples"
        raise UserError.of("guidance", problem, "evaluate the tasks whose data have the spans", self.name)


@dataclass(frozen=True)
class MarkedPair:
    """One sequence of an example."""

    example: int
    """Index of the example in its task."""
    pair: EncodedPair
    """Its tokens."""
    marks: Mapping[str, tuple[bool, ...]]
    """Mark → whether each input token has it."""
    cut: frozenset[str]
    """Marks that a token removed on the left had."""


def marked_pairs(
    task: TaskData,
    encoded: Sequence[Sequence[EncodedPair]],
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
) -> list[MarkedPair]:
    """All sequences of a task's examples with their marks `names`, whether they have any or not.

    encoded: the tokens of every pair of every example. Spans are those of an example's first prompt. Raises
    `UserError` with every example whose tokens cannot be placed in its text.
    """
    encoder, faults, found = DocumentEncoder(tokenizer), FaultCollector(), []
    for at, (example, pairs) in enumerate(zip(task.examples, encoded, strict=True)):
        where = f"{task.source}:{example.line}"
        for (prompt, after), pair in zip(example.pairs, pairs, strict=True):
            with faults.catching():
                marks, cut = _pair_marks(encoder, example, prompt, after, pair, names, where)
                found.append(MarkedPair(at, pair, marks, cut))
    faults.raise_if_any()
    return found


def span_marks(
    data: Sequence[TaskData],
    encoded: Sequence[Sequence[EncodedPair]],
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
) -> dict[str, SpanMarks]:
    """The marks `names` of all sequences of tasks that have spans; `encoded` as `ModelWork` has it.

    Raises `UserError` with every example whose tokens cannot be placed in its text, and where two examples
    with the same tokens have different spans.
    """
    found = {name: SpanMarks(name) for name in names}
    faults = FaultCollector()
    for task, pairs in by_task(data, encoded):
        if not task.task.spans:
            continue
        for one in faults.attempt(marked_pairs, task, pairs, tokenizer, names) or ():
            for name, marks in one.marks.items():
                before = found[name].known.setdefault(one.pair.input_ids, marks)
                if before != marks:
                    where = f"{task.source}:{task.examples[one.example].line}"
                    problem = f"has spans of {name} that differ from those of an example with the same tokens"
                    faults.add(Fault(where, problem, "give both the same spans"))
    faults.raise_if_any()
    return found


def _pair_marks(
    encoder: DocumentEncoder, example: Example, prompt: str, after: str, pair: EncodedPair,
    names: Sequence[str], where: str,
) -> tuple[dict[str, tuple[bool, ...]], frozenset[str]]:  # fmt: skip
    """Mark → whether each input token of a pair has it; and the marks that lost a token to truncation."""
    ids, offsets = encoder.encode_with_offsets(prompt + after)
    whole = [*pair.input_ids, pair.target_ids[-1]]
    size = min(len(ids), len(whole))
    if ids[-size:].tolist() != whole[-size:]:
        problem = "has a prompt whose tokens change with its continuation: its spans cannot be located"
        raise UserError.of(where, problem, "begin the continuation with a space", after)
    marks = np.zeros((len(names), len(ids)), np.uint8)
    for name, start, end, text in example.spans if prompt == example.prompts[0] else ():
        start, end = start + len(prompt), end + len(prompt)
        if prompt[max(start, 0) : end] != text:
            problem = f"has a prompt in which its span of {name} is at another place"
            raise UserError.of(where, problem, "give spans to tasks without a chat template", text)
        if name in names:
            mark_tokens(marks[names.index(name)], offsets, [trim_stretch(prompt, start, end)], 1)
    cut, kept = marks[:, : len(ids) - size], marks[:, len(ids) - size :].astype(bool)
    missing = [False] * (len(whole) - size)
    return (
        {name: tuple([*missing, *row.tolist()][:-1]) for name, row in zip(names, kept, strict=True)},
        frozenset(name for name, row in zip(names, cut, strict=True) if row.any()),
    )
