"""An ablation in sentences: how many heads of the plan are moved, used, harmful."""

from __future__ import annotations

from collections import Counter

from gaguide.ablate.records import AblationRecord, ModelRecord
from gaguide.report.text import fixed, interval, p_value


def findings(record: AblationRecord) -> list[str]:
    """One sentence for each model."""
    return [model_finding(record, model, model.name) for model in record.models]


def model_finding(record: AblationRecord, model: ModelRecord, name: str) -> str:
    """One model's heads, and its loss without all of them."""
    guided = model.with_role("guided")
    counts = Counter(head.verdict for head in guided)
    listed = "; ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    text = f"{name}: {len(guided)} heads of the plan: {listed}"
    together = model.together.get(record.deciding)
    if together is not None and together.loss.difference is not None:
        loss, p = together.loss, p_value(together.loss.p)
        change = fixed(together.loss.difference, 4, "+")
        text += (
            f"; without all of them at once the held-out loss changes by {change} "
            f"{interval(loss.low, loss.high, 4)} (p {p if p.startswith('<') else '= ' + p})"
        )
    return f"{text}."
