"""Runs compared in sentences: what guidance did, what it cost, and why they may not be comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gaguide.report.run_records import RunRecord
from gaguide.report.text import fixed


def findings(runs: Sequence[RunRecord]) -> list[str]:
    """One sentence per run: attention on the guided words before and after, and the cost in loss."""
    sentences = []
    baseline = runs[0]
    for run in runs:
        parts = []
        if run.after and run.after.guided_attention is not None:
            rose = f"attention on the guided words is {run.after.guided_attention:.3f} after training"
            if run.before and run.before.guided_attention is not None:
                rose = (
                    "attention on the guided words went from "
                    f"{run.before.guided_attention:.3f} to {run.after.guided_attention:.3f}"
                )
            if run is not baseline and baseline.after and baseline.after.guided_attention is not None:
                rose += f" ({baseline.name}: {baseline.after.guided_attention:.3f})"
            parts.append(rose)
        if run.after and run.after.lm_loss is not None:
            parts.append(_cost(run, baseline))
        if parts:
            sentences.append(f"{run.name}: " + "; ".join(parts) + ".")
        elif not run.finished:
            sentences.append(f"{run.name}: not finished; nothing has been measured on held-out text yet.")
    return sentences


def _cost(run: RunRecord, baseline: RunRecord) -> str:
    assert run.after is not None and run.after.lm_loss is not None
    loss = f"held-out loss {run.after.lm_loss:.4f}"
    base = baseline.after.lm_loss if baseline.after else None
    if run is baseline or not base:
        return loss
    difference = run.after.lm_loss - base
    return f"{loss}, {fixed(difference, 4, '+')} ({difference / base:+.2%}) against {baseline.name}"


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """Why a difference between these runs may not be due to guidance: other data, length, seed or code.

    Also names runs whose last held-out measurement is older than their last step.
    """
    checks: list[tuple[str, Callable[[RunRecord], Any]]] = [
        ("code", lambda run: run.fingerprints.get("code")),
        ("training data", lambda run: run.fingerprints.get("data")),
        ("tokenizer, so their losses are on different scales", lambda run: run.fingerprints.get("tokenizer")),
        ("order of the data", lambda run: run.fingerprints.get("order")),
        ("number of training tokens", lambda run: run.tokens),
        ("number of held-out blocks", lambda run: run.after.blocks if run.after else None),
        ("loss before training (another model or seed)", _loss_before),
    ]
    found = [
        f"{run.name}: its last held-out measurement is from step {last:,.0f} of {run.steps:,}."
        for run in runs
        if run.steps and run.validations and (last := run.validations[-1]["step"]) < run.steps
    ]
    for what, value in checks:
        known = [value(run) for run in runs]
        if len({item for item in known if item is not None}) > 1:
            odd = [run.name for run, item in zip(runs, known, strict=True) if item not in (None, known[0])]
            found.append(f"Not the same {what}: {', '.join(odd)} against {runs[0].name}.")
    return found


def _loss_before(run: RunRecord) -> float | None:
    if run.before is None or run.before.lm_loss is None:
        return None
    return round(run.before.lm_loss, 3)
