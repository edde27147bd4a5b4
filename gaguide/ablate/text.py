"""The effect of removing heads on held-out text: losses by block and by distance to the last cue.

Shapes: B blocks of a batch, T positions, K bands.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gaguide.ablate.meter import Meter, Reading, sum_readings
from gaguide.ablate.passes import Passes, without_labels
from gaguide.ablate.subjects import Key, Subject, by_layer, together
from gaguide.errors import UserError
from gaguide.guidance.cues import BANDS, cue_bands, document_index
from gaguide.guidance.patterns import Columns, Marks, Pattern, marked, target_from
from gaguide.interventions import (
    Intervention,
    MeanOutput,
    ResampleOutput,
    ZeroOutput,
    intervene,
    knock_out_edges,
    mean_outputs,
)
from gaguide.model.attention_hooks import attach_consumer

Batch = Mapping[str, torch.Tensor]
"""Keyword arguments of the model, on its device."""


@dataclass(frozen=True)
class TextSums:
    """Losses of held-out blocks; arrays [blocks, bands], bands of the subject's pattern."""

    loss: Mapping[int, np.ndarray]
    """id of the pattern → summed loss without an intervention."""
    tokens: Mapping[int, np.ndarray]
    """id of the pattern → predicted tokens."""
    change: Mapping[tuple[Key, str], np.ndarray]
    """(head, method) → summed change of the loss."""
    together: Mapping[tuple[str, str], np.ndarray]
    """(set of heads as in `together`, method) → summed change, bands of all their patterns."""
    together_tokens: np.ndarray
    """Predicted tokens in the bands of all guided heads' patterns."""
    readings: Mapping[Key, Reading]
    """Head → its attention and the norms of its output."""
    means: Mapping[Key, torch.Tensor]
    """Head → its mean output; empty without the method `mean`."""
    passes: float
    """Computation so far, in whole passes over the text."""
    notes: tuple[str, ...] = ()
    """Shortcuts that the model did not support."""
    as_control: Mapping[tuple[Key, str, int], np.ndarray] = field(default_factory=dict)
    """(control, method, id of the pattern of its guided head) → its `change` in the bands of that pattern,
    if its own differs. Not for `edges`, which are those to its own pattern's targets."""


def check_batches(methods: Sequence[str], batches: Sequence[Batch]) -> None:
    """Raise `UserError` where a block has no other in its batch to resample from."""
    if "resample" in methods and any(len(batch["input_ids"]) < 2 for batch in batches):
        problem = "resample takes the output of another block of the same pass, and a pass has only one"
        raise UserError.of("--batch", problem, "give at least two blocks a pass, or leave resample out")


@torch.no_grad()
def measure_text(
    model: PreTrainedModel,
    subjects: Sequence[Subject],
    batches: Sequence[Batch],
    methods: Sequence[str],
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, of: None,
    marks: Sequence[Marks] = (),
) -> TextSums:
    """Losses of `batches` with each of `subjects` removed by each of `methods`, and readings of their heads.

    Each batch is computed once as a whole; a removal resumes at its head's layer. `model` must be in eval
    mode. `tick` is called with the removals done and all. `marks` are those of each batch's tokens, for
    patterns given by the data. Tokens whose label in a batch is -100 do not count.
    """
    check_batches(methods, batches)
    layers = list(by_layer(subjects))
    passes = Passes(model)
    passes.check(batches[0], layers)
    plain = [without_labels(one) for one in batches]
    means = mean_outputs(model, plain, layers) if "mean" in methods else {}
    work = _Removals(passes, subjects, methods, means, lambda done: tick(done, total))
    total = len(batches) * (len(subjects) + len(work.sets)) * len(methods)
    meter, rng = Meter(model, subjects), random.Random(seed)
    for batch, given in zip(batches, marks or [{}] * len(batches), strict=True):
        with marked(given):
            with passes.keeping(), attach_consumer(model, meter.layers, meter):
                clean_BT = passes.losses(batch)
            work.readings.append({key: _on_cpu(reading) for key, reading in meter.readings.items()})
            work.add(batch, clean_BT, rng.randrange(1, max(2, len(clean_BT))))
    return work.sums(passes.count / len(batches))


class _Removals:
    """Losses of batches with each subject removed, and with each set of them, summed by band."""

    def __init__(
        self,
        passes: Passes,
        subjects: Sequence[Subject],
        methods: Sequence[str],
        means: Mapping[Key, torch.Tensor],
        tick: Callable[[int], None],
    ) -> None:
        self.passes, self.subjects, self.methods, self.means = passes, subjects, methods, means
        self.tick, self.done = tick, 0
        self.layers, self.sets = by_layer(subjects), together(subjects)
        self.readings: list[dict[Key, Reading]] = []
        self.patterns = {id(one.pattern): one.pattern for one in subjects}
        self.guiding: dict[Key, set[int]] = {}  # control → ids of the patterns of its guided heads
        for one in subjects:
            for key in one.controls:
                self.guiding.setdefault(key, set()).add(id(one.pattern))
        self.loss, self.tokens, self.change, self.together, self.as_control = (_parts() for _ in range(5))
        self.together_tokens: list[np.ndarray] = []

    def add(self, batch: Batch, clean_BT: torch.Tensor, shift: int) -> None:
        """Measure one batch, whose losses without an intervention are `clean_BT`."""
        bands = {own: pattern_bands([pattern], batch) for own, pattern in self.patterns.items()}
        for own, band_BT in bands.items():
            self.loss[own].append(_by_band(clean_BT, band_BT))
            self.tokens[own].append(_by_band(self.passes.counted(batch), band_BT))
        for layer, here in self.layers.items():
            with self.passes.from_layer(layer):
                for subject, method in itertools.product(here, self.methods):
                    lost_BT = self._lost([subject], method, shift, batch, clean_BT)
                    self._add_alone(subject, method, lost_BT, bands)
            self.tick(self.done)
        guided = [one.pattern for one in self.subjects if one.role == "guided"]
        everywhere_BT = pattern_bands(guided, batch)
        self.together_tokens.append(_by_band(self.passes.counted(batch), everywhere_BT))
        for (name, some), method in itertools.product(self.sets.items(), self.methods):
            with self.passes.from_layer(min(one.layer for one in some)):
                lost_BT = self._lost(some, method, shift, batch, clean_BT)
            self.together[name, method].append(_by_band(lost_BT, everywhere_BT))
            self.tick(self.done)

    def _add_alone(
        self, subject: Subject, method: str, lost_BT: torch.Tensor, bands: Mapping[int, torch.Tensor]
    ) -> None:
        own = id(subject.pattern)
        self.change[subject.key, method].append(_by_band(lost_BT, bands[own]))
        if method != "edges":
            for other in self.guiding.get(subject.key, set()) - {own}:
                self.as_control[subject.key, method, other].append(_by_band(lost_BT, bands[other]))

    def _lost(
        self, some: Sequence[Subject], method: str, shift: int, batch: Batch, clean_BT: torch.Tensor
    ) -> torch.Tensor:
        """Change [B, T] of each loss without these heads, fp64."""
        with intervene(self.passes.model, *removals(some, method, self.means, shift)):
            loss_BT = self.passes.losses(batch)
        self.done += 1
        return loss_BT.double() - clean_BT.double()

    def sums(self, passes: float) -> TextSums:
        """The batches' blocks in order; `passes` are the whole passes that they took."""
        notes = []
        if not self.passes.resumes:
            notes.append("its layers need more than the previous layer's output: removals run whole passes")
        if self.passes.whole:
            notes.append("logits come from whole passes of the model")
        return TextSums(
            loss=_joined(self.loss),
            tokens=_joined(self.tokens),
            change=_joined(self.change),
            together=_joined(self.together),
            together_tokens=np.concatenate(self.together_tokens),
            as_control=_joined(self.as_control),
            readings=sum_readings(self.readings),
            means=self.means,
            passes=passes,
            notes=tuple(notes),
        )


def _parts() -> defaultdict[Any, list[np.ndarray]]:
    return defaultdict(list)


def _joined(parts: Mapping[Any, Sequence[np.ndarray]]) -> dict[Any, np.ndarray]:
    return {key: np.concatenate(some) for key, some in parts.items()}


@torch.no_grad()
def read_attention(
    model: PreTrainedModel, subjects: Sequence[Subject], batches: Sequence[Batch], marks: Sequence[Marks] = ()
) -> dict[Key, Reading]:
    """Readings of the subjects' heads, without removing any; `marks` as in `measure_text`."""
    meter, parts = Meter(model, subjects), []
    with attach_consumer(model, meter.layers, meter):
        for batch, own in zip(batches, marks or [{}] * len(batches), strict=True):
            with marked(own):
                model.base_model(**without_labels(batch), use_cache=False)
            parts.append({key: _on_cpu(reading) for key, reading in meter.readings.items()})
    return sum_readings(parts)


def removals(
    subjects: Sequence[Subject], method: str, means: Mapping[Key, torch.Tensor], shift: int = 1
) -> list[Intervention]:
    """The interventions that remove heads by one of `METHODS`, all at once."""
    keys = tuple(one.key for one in subjects)
    if method == "zero":
        return [ZeroOutput(keys)]
    if method == "mean":
        return [MeanOutput({key: means[key] for key in keys})]
    if method == "resample":
        return [ResampleOutput(keys, shift)]
    return [knock_out_edges([one.key], one.pattern) for one in subjects]


def pattern_bands(patterns: Sequence[Pattern], batch: Batch) -> torch.Tensor:
    """Band of each predicted token [B, T - 1]; patterns by offset have no cues: all tokens are `rest`."""
    ids_BT = batch["input_ids"]
    marked_BT = torch.zeros_like(ids_BT).bool()
    begins_BT = batch["position_ids"] == 0 if "position_ids" in batch else None
    for pattern in patterns:
        target = target_from(pattern, ids_BT, begins_BT)
        if isinstance(target, Columns):
            marked_BT = marked_BT | target.marked_BT
    return cue_bands(marked_BT, document_index(batch))[:, 1:]


def _by_band(loss_BT: torch.Tensor, band_BT: torch.Tensor) -> np.ndarray:
    """Sums [B, K] by band, fp64."""
    sums_BK = torch.zeros(len(loss_BT), len(BANDS), dtype=torch.float64, device=loss_BT.device)
    return np.asarray(sums_BK.scatter_add_(1, band_BT, loss_BT.double()).cpu().numpy())


def _on_cpu(reading: Reading) -> Reading:
    values: dict[str, Any] = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in vars(reading).items()
    }
    return Reading(**values)
