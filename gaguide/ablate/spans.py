"""Attention of heads on the spans that tasks' data give, in one pass without an intervention.

Every sequence is computed as a row of its own, padded on the right: a causal model computes its tokens as if
they were alone, positions are those of the text, and queries on padding do not count.

Shapes: B rows of a batch, P sequences, h heads of a layer, Q query rows, T positions, M marks, W sets of
queries (`QUERIES`), E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from gaguide.ablate.records import Queries
from gaguide.ablate.subjects import Key, Subject, by_layer
from gaguide.errors import UserError
from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.encode.span_marks import MarkedPair, by_task, marked_pairs
from gaguide.evaluate.results.intervals import clusters
from gaguide.evaluate.schedule.rows import Row, TokenSequence, build_row
from gaguide.evaluate.score.logits import MAX_LOGIT_POSITIONS, model_inputs
from gaguide.evaluate.score.rearrange import separate_rows
from gaguide.evaluate.tasks.read import TaskData
from gaguide.grouping import grouped
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer
from gaguide.model.attention_rows import masked_scores, softmax_rows

QUERIES: tuple[Queries, ...] = get_args(Queries)
_ROWS = 256


@dataclass(frozen=True)
class TaskSpans:
    """The sequences of one task whose data give spans."""

    task: str
    """Its name."""
    marks: tuple[str, ...]
    """Names of its spans [M]."""
    pairs: tuple[MarkedPair, ...]
    """The sequences with a span [P]."""
    cut: Mapping[str, frozenset[int]]
    """Mark → examples in which truncation removed a token of a span."""
    groups: tuple[str, ...]
    """Unit of each of the task's examples [E]: its group, or itself."""

    @cached_property
    def sequences(self) -> dict[int, list[tuple[int, ...]]]:
        """Example → input ids of its sequences with a span."""
        return grouped((one.example, one.pair.input_ids) for one in self.pairs)


@dataclass(frozen=True)
class SpanSums:
    """Attention of heads on the spans of a task."""

    spans: TaskSpans
    """The sequences."""
    mass: Mapping[Key, np.ndarray]
    """Head → attention on the spans, summed over the queries that see one [E, M, W]."""
    queries: Mapping[Key, np.ndarray]
    """Head → these queries [E, M, W]."""


def find_spans(
    data: Sequence[TaskData], encoded: Sequence[Sequence[EncodedPair]], tokenizer: Any
) -> tuple[list[TaskSpans], list[str]]:
    """The spans of the tasks that have some, and sentences on tasks whose spans cannot be measured."""
    found, notes = [], []
    without = [task.task.name for task in data if not task.task.spans]
    if without:
        verb, own = ("give", "their") if len(without) > 1 else ("gives", "its")
        notes.append(
            f"{', '.join(without)} {verb} no spans, so that attention on {own} own cues is not measured"
        )
    for task, pairs in by_task(data, encoded):
        names = tuple(task.task.spans)
        if not names:
            continue
        try:
            marked = marked_pairs(task, pairs, tokenizer, names)
        except UserError as error:
            first = error.faults[0]
            notes.append(
                f"attention on the spans of {task.task.name} is not measured: {first.field} {first.problem} "
                f"(such examples: {len(error.faults):,})"
            )
            continue
        cut = {name: frozenset(one.example for one in marked if name in one.cut) for name in names}
        kept = tuple(one for one in marked if any(any(marks) for marks in one.marks.values()))
        ids, groups = [one.id for one in task.examples], [one.group for one in task.examples]
        found.append(TaskSpans(task.task.name, names, kept, cut, clusters(ids, groups) or tuple(ids)))
    return found, notes


@torch.no_grad()
def read_spans(
    model: PreTrainedModel,
    subjects: Sequence[Subject],
    tasks: Sequence[TaskSpans],
    batch_tokens: int = MAX_LOGIT_POSITIONS,
) -> list[SpanSums]:
    """Attention of the subjects' heads on each task's spans; `batch_tokens`: padded tokens of a pass.

    `model` must be in eval mode. Numbers do not depend on the batches, except for rounding.
    """
    found = []
    for spans in tasks:
        meter = _SpanMeter(subjects)
        rows = [
            build_row([TokenSequence(one.pair.input_ids, one.pair.target_ids, (at, 0))])
            for at, one in enumerate(spans.pairs)
        ]
        shape = len(spans.groups), len(spans.marks), len(QUERIES)
        totals = {one.key: np.zeros((2, *shape)) for one in subjects}
        with attach_consumer(model, meter.layers, meter):
            for some in separate_rows(rows, batch_tokens):
                ids_BT = model_inputs(some, model.device)["input_ids"]
                places = [row.readouts[0].key[0] for row in some]
                meter.marks_BTM, meter.wanted_BTW = _placed(
                    some, [spans.pairs[at] for at in places], spans, ids_BT
                )
                model.base_model(input_ids=ids_BT, use_cache=False)
                for key, sums_2BMW in meter.sums.items():
                    for b, at in enumerate(places):
                        totals[key][:, spans.pairs[at].example] += sums_2BMW[:, b]
        mass = {key: both[0] for key, both in totals.items()}
        found.append(SpanSums(spans, mass, {key: both[1] for key, both in totals.items()}))
    return found


def _placed(
    rows: Sequence[Row], pairs: Sequence[MarkedPair], spans: TaskSpans, ids_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Marks of the keys [B, T, M], and which queries each set has [B, T, W]: none on padding."""
    marks_BTM = torch.zeros(*ids_BT.shape, len(spans.marks), dtype=torch.bool)
    wanted_BTW = torch.zeros(*ids_BT.shape, len(QUERIES), dtype=torch.bool)
    for b, (row, one) in enumerate(zip(rows, pairs, strict=True)):
        for m, name in enumerate(spans.marks):
            marks_BTM[b, : len(row), m] = torch.tensor(one.marks[name])
        wanted_BTW[b, list(row.readouts[0].positions), QUERIES.index("continuation")] = True
        wanted_BTW[b, : len(row), QUERIES.index("after")] = True
    return marks_BTM.to(ids_BT.device), wanted_BTW.to(ids_BT.device)


@dataclass
class _SpanMeter:
    """A consumer that sums the attention of heads; `sums` is of the latest pass."""

    subjects: Sequence[Subject]
    marks_BTM: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    wanted_BTW: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sums: dict[Key, np.ndarray] = field(default_factory=dict)
    """Head → mass and queries [2, B, M, W], fp64."""

    changes_outputs = False

    @property
    def layers(self) -> list[int]:
        return list(by_layer(self.subjects))

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return _SpanPass(self)


class _SpanPass(PassHandler):
    understands = frozenset({"softcap", "s_aux"})

    def __init__(self, meter: _SpanMeter) -> None:
        self.meter = meter

    def observe(self, call: AttentionCall) -> None:
        meter, T = self.meter, call.q_BHTD.shape[2]
        subjects = by_layer(meter.subjects)[call.layer]
        heads = [one.head for one in subjects]
        B, M, W = len(meter.marks_BTM), meter.marks_BTM.shape[-1], meter.wanted_BTW.shape[-1]
        sums = torch.zeros(2, B, len(heads), M, W, dtype=torch.float64, device=call.q_BHTD.device)
        for start in range(0, T, _ROWS):
            stop = min(start + _ROWS, T)
            s_BhQT = masked_scores(call, heads, start, stop)
            marks_B1TM = meter.marks_BTM[:, None].to(s_BhQT.dtype)
            sees_BhQM = (s_BhQT != -torch.inf).to(s_BhQT.dtype) @ marks_B1TM > 0
            mass_BhQM = softmax_rows(call, heads, s_BhQT) @ marks_B1TM
            for w in range(W):
                counts_BhQM = sees_BhQM & meter.wanted_BTW[:, None, start:stop, None, w]
                sums[0, ..., w] += mass_BhQM.double().masked_fill(~counts_BhQM, 0.0).sum(2)
                sums[1, ..., w] += counts_BhQM.sum(2)
        for at, one in enumerate(subjects):
            meter.sums[one.key] = sums[:, :, at].cpu().numpy()
