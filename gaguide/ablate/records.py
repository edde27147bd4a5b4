"""The records of an ablation, and ablation.json, which holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gaguide.files import read_record, write_json

FILE = "ablation.json"
Role = Literal["guided", "control", "other"]
Moved = Literal["moved", "moved away", "not moved", "not tested", "not compared"]
"""not tested: a single block or seed, where a change has no p value; not compared: without another model."""
Used = Literal["used", "not used", "harmful", "not tested", "not measured"]
"""not tested: as in `Moved`; not measured: no number, as where a loss is not finite."""


@dataclass(frozen=True)
class Effect:
    """The change that an intervention makes to a number, paired over blocks of text or examples."""

    difference: float | None
    """With the intervention minus without; None where a number is not finite."""
    low: float | None = None
    """Lower end of its 95% interval."""
    high: float | None = None
    """Upper end of its 95% interval."""
    p: float | None = None
    """Two-sided p value."""
    p_holm: float | None = None
    """Corrected over the model's guided heads; None where it is not part of a verdict."""
    count: int = 0
    """Tokens or examples behind the difference."""


@dataclass(frozen=True)
class MethodEffects:
    """Changes made by one way of removing a head."""

    loss: Effect
    """Held-out loss in nats per token."""
    near: Effect
    """The same over tokens on a cue and up to 20 tokens after it."""
    bands: Mapping[str, Effect]
    """The same by distance to the last cue."""
    over_controls: Effect | None = None
    """Effect of a guided head on the loss minus the mean effect of its controls."""
    near_over_controls: Effect | None = None
    """The same near cues."""
    over_first: Effect | None = None
    """Its effect minus that of the same head in the first model, on the same text."""
    near_over_first: Effect | None = None
    """The same near cues."""
    tasks: Mapping[str, Mapping[str, Effect]] = field(default_factory=dict)
    """Task → metric → change."""


Queries = Literal["continuation", "after"]
"""Whose attention: continuation, the queries that predict the scored tokens; after, every query of the prompt
and the continuation that sees a token of a span."""


@dataclass(frozen=True)
class SpanAttention:
    """Attention of a head on the spans that a task's data give, by a task, a mark and a set of queries."""

    task: str
    """Name of the task."""
    mark: str
    """Name of the spans in the task file."""
    queries: Queries
    """Whose attention."""
    attention: float | None
    """Mean over the examples of each one's mean mass over these queries; None where there is no example, or
    it is not finite."""
    low: float | None
    """Lower end of its 95% interval over examples, or their groups."""
    high: float | None
    """Upper end of it."""
    rise: Effect | None
    """Change from the model that attention is compared with, over examples with the same tokens in both."""
    moved: Moved
    """Whether it rose beyond noise, as in `HeadRecord`."""
    examples: int
    """Examples behind the mean: those with a span that kept all its tokens."""
    query_count: int
    """Queries of all of these."""
    cut: int
    """Examples left out because the prompt is too long for the model and a token of a span was removed."""
    of: int
    """All examples of the task."""


@dataclass(frozen=True)
class HeadRecord:
    """One head of one model."""

    layer: int
    """Layer, counted from 0."""
    head: int
    """Head in the layer, counted from 0."""
    role: Role
    """guided; control: a random head of the same layer that is not guided; other."""
    pattern: str
    """Pattern whose targets are its cues; of a control, that of its guided head."""
    attention: float | None
    """Attention mass on the pattern's targets, over queries that see one; None where none sees one."""
    attention_before: float | None
    """The same in the model that it is compared with."""
    rise: Effect | None
    """Change of the mass from that model."""
    output_norm: float | None
    """Mean norm of its contribution to the residual stream; None if the output projection is unknown."""
    target_norm: float | None
    """Attention-weighted norm of the values, after projection, of the pattern's targets."""
    weighted_norm: float | None
    """The same over all keys."""
    methods: Mapping[str, MethodEffects]
    """Way of removing the head → effects."""
    moved: Moved
    """Whether attention on the targets rose beyond noise (p, Holm-corrected, below 0.05)."""
    used: Used
    """Whether the loss rises beyond noise without the head (used), falls (harmful), or neither."""
    spans: tuple[SpanAttention, ...] = ()
    """Attention on the tasks' own spans."""

    @property
    def verdict(self) -> str:
        """Both in words."""
        return verdict_in_words(self.moved, self.used)


def verdict_in_words(moved: Moved, used: Used) -> str:
    """Such as "attention moved, not used"."""
    return f"attention {moved}, {used}"


@dataclass(frozen=True)
class ModelRecord:
    """One model."""

    model: str
    """Folder or hub id."""
    name: str
    """Short name in tables."""
    identity: Mapping[str, Any]
    """Hashes of its content."""
    layers: int
    """Number of layers."""
    heads_per_layer: int
    """Number of heads in each."""
    loss: float | None
    """Held-out loss without an intervention; None without text or where it is not finite."""
    band_loss: Mapping[str, float | None]
    """The same by distance to the last cue of the plan's first pattern; None for a band without a token."""
    band_tokens: Mapping[str, int]
    """Predicted tokens of each band."""
    tasks: Mapping[str, Mapping[str, float | None]]
    """Task → metric → value without an intervention; None where it is not finite."""
    heads: tuple[HeadRecord, ...]
    """Guided heads, controls and others, in order of (layer, head)."""
    together: Mapping[str, MethodEffects]
    """Way of removing them → effects of removing all guided heads at once; `over_controls` compares with the
    same number of unguided heads of the same layers, None if there are fewer. Empty for one guided head."""
    seconds: float
    """Time of the model's measurement."""
    notes: tuple[str, ...] = ()
    """Notes for the reader of its numbers."""

    def with_role(self, role: Role) -> list[HeadRecord]:
        """Its heads with that role."""
        return [head for head in self.heads if head.role == role]


@dataclass(frozen=True)
class AblationRecord:
    """An ablation of one or several models."""

    models: tuple[ModelRecord, ...]
    """The models, in the order given."""
    settings: Mapping[str, Any]
    """Settings: heads removed, methods, text and tasks."""
    deciding: str
    """The way of removing a head on which verdicts rest."""
    before: str | None
    """Model that attention is compared with: its name, or `start`; None where it is not compared."""
    versions: Mapping[str, str]
    """Versions and the fingerprint of the code."""


def write_ablation(folder: Path, record: AblationRecord) -> None:
    """Write ablation.json into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, asdict(record))


def read_ablation(folder: Path) -> AblationRecord:
    """The record in `folder`. Raises `UserError` where it cannot be read."""
    remedy = "run gaguide ablate again into another folder"
    return read_record(folder / FILE, AblationRecord, "an ablation", remedy)
