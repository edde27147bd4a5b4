"""An ablation in sentences: how many heads of the plan are moved, used, harmful."""

from __future__ import annotations

from collections.abc import Iterator

from gaguide.ablate.records import AblationRecord, ModelRecord
from gaguide.grouping import grouped
from gaguide.numbers import fixed
from gaguide.report.text import counted, interval, known_mean, p_words, tally


def findings(record: AblationRecord) -> list[str]:
    """One sentence for each model, and for each kind of spans of its tasks."""
    return [
        text
        for model in record.models
        for text in (model_finding(record, model, model.name), *span_findings(model))
    ]


def model_finding(record: AblationRecord, model: ModelRecord, name: str) -> str:
    """One model's heads, and its loss without all of them."""
    guided = model.with_role("guided")
    text = f"{name}: {len(guided)} heads of the plan: {tally(head.verdict for head in guided)}"
    together = model.together.get(record.deciding)
    if together is not None and together.loss.difference is not None:
        loss = together.loss
        change = fixed(together.loss.difference, 4, "+")
        text += (
            f"; without all of them at once the held-out loss changes by {change} "
            f"{interval(loss.low, loss.high, 4)} ({p_words(loss.p) or 'not tested'})"
        )
    return f"{text}."


def span_findings(model: ModelRecord) -> Iterator[str]:
    """Whether attention moved on the tasks' own spans, from the queries that predict the continuation."""
    spans = [one for head in model.with_role("guided") for one in head.spans if one.queries == "continuation"]
    for (task, mark), some in grouped(((one.task, one.mark), one) for one in spans).items():
        where = f"the spans {mark} of {task}"
        mean = known_mean([one.attention for one in some])
        if mean is None:
            known = f"{some[0].examples:,} of {some[0].of:,} examples have whole spans"
            yield f"{model.name}: attention on {where} is not finite ({known})."
            continue
        listed = tally(one.moved for one in some if one.moved != "not compared") or "not compared"
        yield (
            f"{model.name}: attention of {counted(len(some), 'head')} of the plan from the continuation on "
            f"{where} ({some[0].examples:,} of {some[0].of:,} examples): {listed}, mean {fixed(mean, 3)}."
        )
