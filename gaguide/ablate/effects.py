"""From sums over blocks to effects with intervals, and from those to verdicts. Pure.

Intervals and p values are over blocks of text (`gaguide.stats.paired.rate_change`), so they hold for other
text of this kind, not for another seed of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gaguide.ablate.meter import Reading
from gaguide.ablate.records import Effect, HeadRecord, MethodEffects, Moved, Used
from gaguide.ablate.subjects import Key, Subject
from gaguide.ablate.text import TextSums
from gaguide.guidance.cues import BANDS, NEAR
from gaguide.numbers import finite
from gaguide.stats.groups import ALPHA
from gaguide.stats.paired import holm, rate_change

TaskEffects = Mapping[tuple[Key, str], Mapping[str, Mapping[str, Effect]]]
"""(head, method) → task → metric → change."""
_NEAR = [BANDS.index(name) for name in NEAR]
_ALL = list(range(len(BANDS)))
NOTHING = Effect(None)


@dataclass(frozen=True)
class MeasuredModel:
    """Measurements of one model."""

    subjects: Sequence[Subject]
    """The heads."""
    methods: Sequence[str]
    """The ways of removing them."""
    text: TextSums | None
    """On held-out text; None without text."""
    tasks: TaskEffects
    """On tasks; empty without."""
    before: Mapping[Key, Reading] | None
    """The heads' readings in the model that attention is compared with."""
    first: TextSums | None
    """Losses of the first model without the same heads, on the same text; None for the first model itself."""


def head_records(measured: MeasuredModel, deciding: str) -> tuple[HeadRecord, ...]:
    """The records of all subjects; verdicts are corrected over the guided heads (Holm)."""
    heads = [_record(measured, subject) for subject in measured.subjects]
    guided = [at for at, head in enumerate(heads) if head.role == "guided"]
    corrected = _corrected([heads[at] for at in guided], deciding)
    for at, head in zip(guided, corrected, strict=True):
        heads[at] = head
    return tuple(heads)


def together_effects(measured: MeasuredModel) -> dict[str, MethodEffects]:
    """Method → effects of removing all guided heads at once; empty for one guided head and without text."""
    text = measured.text
    if text is None:
        return {}
    found = {}
    for method in measured.methods:
        if ("guided", method) not in text.together:
            continue
        own, tokens = text.together["guided", method], text.together_tokens
        others = text.together.get(("controls", method))
        first = None if measured.first is None else measured.first.together.get(("guided", method))
        found[method] = _effects(own, tokens, others, first, {})
    return found


def _record(measured: MeasuredModel, subject: Subject) -> HeadRecord:
    text = measured.text
    reading = text.readings[subject.key] if text is not None else None
    before = measured.before.get(subject.key) if measured.before is not None else None
    return HeadRecord(
        layer=subject.layer,
        head=subject.head,
        role=subject.role,
        pattern=subject.pattern.name,
        attention=_rate(reading, "mass"),
        attention_before=_rate(before, "mass"),
        rise=_rise(reading, before),
        output_norm=_output_norm(reading),
        target_norm=_rate(reading, "target_norm"),
        weighted_norm=_rate(reading, "weighted_norm"),
        methods={method: _method(measured, subject, method) for method in measured.methods},
        moved="not compared",
        used="not measured",
    )


def _method(measured: MeasuredModel, subject: Subject, method: str) -> MethodEffects:
    text, tasks = measured.text, measured.tasks.get((subject.key, method), {})
    if text is None:
        return MethodEffects(NOTHING, NOTHING, dict.fromkeys(BANDS, NOTHING), tasks=tasks)
    own, tokens = text.change[subject.key, method], text.tokens[id(subject.pattern)]
    controls = _controls(measured, text, subject, method)
    others = np.mean(controls, axis=0) if controls else None
    first = None if measured.first is None else measured.first.change.get((subject.key, method))
    return _effects(own, tokens, others, first, tasks)


def _effects(
    own: np.ndarray, tokens: np.ndarray, controls: np.ndarray | None, first: np.ndarray | None,
    tasks: Mapping[str, Mapping[str, Effect]],
) -> MethodEffects:  # fmt: skip
    """Effects of changes of loss [N, K], also minus those without controls and those in the first model."""
    minus = [None if other is None else own - other for other in (controls, first)]
    over = [None if less is None else _effect(less, tokens, of) for less in minus for of in (_ALL, _NEAR)]
    bands = {name: _effect(own, tokens, [at]) for at, name in enumerate(BANDS)}
    loss, near = _effect(own, tokens, _ALL), _effect(own, tokens, _NEAR)
    return MethodEffects(loss, near, bands, over[0], over[1], over[2], over[3], tasks)


def _controls(measured: MeasuredModel, text: TextSums, subject: Subject, method: str) -> list[np.ndarray]:
    """The changes without each control of a guided head, in the bands of the head's pattern."""
    own = {one.key: one.pattern for one in measured.subjects}
    found = [
        text.change[key, method]
        if own[key] == subject.pattern
        else text.as_control.get((key, method, id(subject.pattern)))
        for key in subject.controls
    ]
    return [change for change in found if change is not None]


def _effect(change_NK: np.ndarray, tokens_NK: np.ndarray, bands: Sequence[int]) -> Effect:
    """The change per token in some bands [N blocks, K bands]; no number where a loss is not finite."""
    change_N, tokens_N = change_NK[:, bands].sum(1), tokens_NK[:, bands].sum(1)
    count = int(tokens_N.sum())
    if count == 0 or not np.isfinite(change_N).all():
        return Effect(None, count=count)
    found = rate_change(change_N.tolist(), tokens_N.tolist())
    return Effect(found.difference, found.low, found.high, found.p, None, count)


def _rise(reading: Reading | None, before: Reading | None) -> Effect | None:
    """The change of attention mass, over queries that see a target: the same queries in both models, also
    where attention is not finite, which gives no number."""
    if reading is None or before is None or not int(reading.queries.sum()):
        return None
    return _effect(
        (reading.mass - before.mass).numpy()[:, None], reading.queries.numpy()[:, None], [0]
    )  # fmt: skip


def _rate(reading: Reading | None, name: str) -> float | None:
    """A sum of a reading over queries that see a target, divided by their number; None if not finite."""
    value = None if reading is None else getattr(reading, name)
    if reading is None or value is None or not int(reading.queries.sum()):
        return None
    return finite(float(value.sum() / reading.queries.sum()))


def _output_norm(reading: Reading | None) -> float | None:
    if reading is None or reading.output_norm is None:
        return None
    return finite(float(reading.output_norm.mean() / reading.tokens))


_FAMILIES = ("loss", "near", "over_controls", "near_over_controls", "over_first", "near_over_first")
"""Effects that are tested for each guided head; each is a family for Holm, for each method."""


def _corrected(heads: Sequence[HeadRecord], deciding: str) -> list[HeadRecord]:
    """Guided heads with verdicts by the deciding method; effects of each are Holm-corrected over them."""
    for method in dict.fromkeys(name for head in heads for name in head.methods):
        for name in _FAMILIES:
            heads = _corrected_effects(heads, method, name)
    rises = holm([None if head.rise is None else head.rise.p for head in heads])
    return [
        replace(head, rise=rise, moved=movement(rise), used=usage(head.methods[deciding].loss))
        for head, p in zip(heads, rises, strict=True)
        for rise in [None if head.rise is None else replace(head.rise, p_holm=p)]
    ]


def _corrected_effects(heads: Sequence[HeadRecord], method: str, name: str) -> list[HeadRecord]:
    """The heads with one effect of a method Holm-corrected over them; heads without it are as they were."""
    effects = [getattr(head.methods.get(method), name, None) for head in heads]
    ps = holm([None if one is None else one.p for one in effects])
    return [
        head
        if one is None
        else replace(
            head, methods={**head.methods, method: _with(head.methods[method], name, replace(one, p_holm=p))}
        )
        for head, one, p in zip(heads, effects, ps, strict=True)
    ]


def _with(effects: MethodEffects, name: str, effect: Effect) -> MethodEffects:
    changed: dict[str, Any] = {name: effect}
    return replace(effects, **changed)


def usage(loss: Effect) -> Used:
    """used: the loss rises without the head, beyond noise; harmful: it falls; not used: neither; not tested:
    one block or seed, where nothing is beyond noise."""
    if loss.difference is None:
        return "not measured"
    if loss.p_holm is None:
        return "not tested"
    if loss.p_holm >= ALPHA:
        return "not used"
    return "used" if loss.difference > 0 else "harmful"


def movement(rise: Effect | None) -> Moved:
    """Whether attention on the targets rose (moved) or fell (moved away) beyond noise."""
    if rise is None or rise.difference is None:
        return "not compared"
    if rise.p_holm is None:
        return "not tested"
    if rise.p_holm >= ALPHA:
        return "not moved"
    return "moved" if rise.difference > 0 else "moved away"
