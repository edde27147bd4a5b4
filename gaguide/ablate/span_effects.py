"""From attention on the spans of examples to means over examples, their change and its test. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from gaguide.ablate.effects import movement
from gaguide.ablate.records import Effect, SpanAttention
from gaguide.ablate.spans import QUERIES, SpanSums
from gaguide.ablate.subjects import Key, Subject
from gaguide.stats.paired import holm, rate_change


def span_records(
    subjects: Sequence[Subject], own: Sequence[SpanSums], before: Sequence[SpanSums] | None
) -> dict[Key, tuple[SpanAttention, ...]]:
    """Head → its attention by task, mark and set of queries; p values of a change are Holm-corrected over the
    guided heads, as `head_records` does.

    before: of the model that attention is compared with; None without one.
    """
    found: dict[Key, list[SpanAttention]] = {one.key: [] for one in subjects}
    guided = [one.key for one in subjects if one.role == "guided"]
    earlier = {sums.spans.task: sums for sums in before or ()}
    for sums in own:
        for m in range(len(sums.spans.marks)):
            for w in range(len(QUERIES)):
                for key in found:
                    found[key].append(_attention(sums, earlier.get(sums.spans.task), key, m, w))
                ps = holm([None if (rise := found[key][-1].rise) is None else rise.p for key in guided])
                for key, p in zip(guided, ps, strict=True):
                    if (rise := found[key][-1].rise) is not None:
                        corrected = replace(rise, p_holm=p)
                        found[key][-1] = replace(found[key][-1], rise=corrected, moved=movement(corrected))
    return {key: tuple(records) for key, records in found.items()}


def _attention(sums: SpanSums, before: SpanSums | None, key: Key, m: int, w: int) -> SpanAttention:
    spans, mark = sums.spans, sums.spans.marks[m]
    queries_E, values_E = sums.queries[key][:, m, w], _means(sums, key, m, w)
    counted = [e for e in np.flatnonzero(queries_E).tolist() if e not in spans.cut[mark]]
    level = _over_examples(values_E, counted, spans.groups)
    rise = None
    if before is not None:
        theirs = before.spans.sequences
        both = [e for e in counted if spans.sequences[e] == theirs.get(e)]
        rise = _over_examples(values_E - _means(before, key, m, w), both, spans.groups) if both else None
    return SpanAttention(
        task=spans.task,
        mark=mark,
        queries=QUERIES[w],
        attention=level.difference,
        low=None if level.low is None else max(0.0, level.low),
        high=None if level.high is None else min(1.0, level.high),
        rise=rise,
        moved="not compared",
        examples=len(counted),
        query_count=int(queries_E[counted].sum()),
        cut=len(spans.cut[mark]),
        of=len(spans.groups),
    )


def _means(sums: SpanSums, key: Key, m: int, w: int) -> np.ndarray:
    """Mean mass of each example [E]; NaN where no query sees a span."""
    queries_E = sums.queries[key][:, m, w]
    return sums.mass[key][:, m, w] / np.where(queries_E == 0, np.nan, queries_E)


def _over_examples(values_E: np.ndarray, chosen: Sequence[int], groups: Sequence[Hashable]) -> Effect:
    """Mean over examples with Student's interval and p over their groups; None if a number is not finite."""
    values = values_E[list(chosen)]
    if not chosen or not np.isfinite(values).all():
        return Effect(None, count=len(chosen))
    found = rate_change(values.tolist(), [1.0] * len(chosen), [groups[e] for e in chosen])
    return Effect(found.difference, found.low, found.high, found.p, None, len(chosen))
