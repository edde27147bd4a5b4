"""Spans that a task's data give, as marks of the tokens of its sequences, for patterns `spans:MARK`.

Sequences are found by their tokens: an intervention on edges computes each as a row of its own, which may be
padded on the right.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gaguide.data.build.encode_row import mark_tokens, trim_stretch
from gaguide.data.format.encoder import DocumentEncoder
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.encode.encoder import EncodedPair
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
        """bool [B, T]; a `UserError` for a row that is none of the sequences."""
        lengths = sorted({len(ids) for ids in self.known}, reverse=True)
        rows = [self._row(ids, lengths) for ids in ids_BT.tolist()]
        return torch.tensor(rows, device=ids_BT.device).reshape(ids_BT.shape)

    def _row(self, ids: Sequence[int], lengths: Sequence[int]) -> list[bool]:
        for length in lengths:
            found = self.known.get(tuple(ids[:length])) if length <= len(ids) else None
            if found is not None:
                return [*found, *[False] * (len(ids) - length)]
        problem = "is given by spans of examples, and this text is none of them"
        raise UserError(Fault("guidance", problem, "evaluate the tasks whose data have the spans", self.name))


def span_marks(
    data: Sequence[TaskData],
    encoded: Sequence[Sequence[EncodedPair]],
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
) -> dict[str, SpanMarks]:
    """The marks `names` of all sequences of tasks that have spans; `encoded` as `ModelWork` has it.

    Raises `UserError` with every example whose tokens cannot be placed in its text, and where two examples
    with the same tokens have other spans.
    """
    encoder = DocumentEncoder(tokenizer)
    found = {name: SpanMarks(name) for name in names}
    asked = [(task, example) for task in data for example in task.examples]
    faults = FaultCollector()
    for (task, example), pairs in zip(asked, encoded, strict=True):
        if not task.task.spans:
            continue
        where = f"{task.source}:{example.line}"
        for (prompt, after), pair in zip(example.pairs, pairs, strict=True):
            with faults.catching():
                for name, marks in _pair_marks(encoder, example, prompt, after, pair, names, where).items():
                    before = found[name].known.setdefault(pair.input_ids, marks)
                    if before != marks:
                        problem = f"has other spans of {name} than an example with the same tokens"
                        raise UserError(Fault(where, problem, "give both the same spans"))
    faults.raise_if_any()
    return found


def _pair_marks(
    encoder: DocumentEncoder, example: Example, prompt: str, after: str, pair: EncodedPair,
    names: Sequence[str], where: str,
) -> dict[str, tuple[bool, ...]]:  # fmt: skip
    """Mark → whether each input token of a pair has it; spans are those of the example's first prompt."""
    ids, offsets = encoder.encode_with_offsets(prompt + after)
    whole = [*pair.input_ids, pair.target_ids[-1]]
    size = min(len(ids), len(whole))
    if ids[-size:].tolist() != whole[-size:]:
        problem = "has a prompt whose tokens are others with its continuation: its spans have no place"
        raise UserError(Fault(where, problem, "begin the continuation with a space", after))
    marks = np.zeros((len(names), size), np.uint8)
    for name, start, end, text in example.spans if prompt == example.prompts[0] else ():
        start, end = start + len(prompt), end + len(prompt)
        if prompt[max(start, 0) : end] != text:
            problem = f"is asked with a prompt in which its span of {name} is not at its place"
            raise UserError(Fault(where, problem, "give spans to tasks without a chat template", text))
        if name in names:
            mark_tokens(marks[names.index(name)], offsets[-size:], [trim_stretch(prompt, start, end)], 1)
    missing = [False] * (len(whole) - size)
    return {
        name: tuple([*missing, *row.astype(bool).tolist()][:-1])
        for name, row in zip(names, marks, strict=True)
    }
