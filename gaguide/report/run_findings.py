"""Runs compared in sentences: effect and cost of guidance, and why they may not be comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gaguide.numbers import fixed
from gaguide.report.ablation_findings import model_finding
from gaguide.report.run_paired import RunTests
from gaguide.report.run_records import RunRecord
from gaguide.report.text import constant_note, differences_shown, first_few, percent


def findings(runs: Sequence[RunRecord]) -> list[str]:
    """One sentence per run: attention on the guided words before and after, and the cost in loss."""
    sentences = []
    baseline = runs[0]
    for run in runs:
        parts = []
        if run.after and run.after.guided_attention is not None:
            rose = f"attention on the guided words is {run.after.guided_attention:.3f} after training"
            if run.rise is not None and run.before is not None:
                rose = (
                    "attention on the guided words went from "
                    f"{run.before.guided_attention:.3f} to {run.after.guided_attention:.3f}"
                )
            if run is not baseline and baseline.after and run.has_heads_of(baseline):
                rose += f" ({baseline.name}: {baseline.after.guided_attention:.3f})"
            parts.append(rose)
        if run.after and run.after.lm_loss is not None:
            parts.append(_cost(run, baseline))
        if parts:
            sentences.append(f"{run.name}: " + "; ".join(parts) + ".")
        elif run.before and run.before.lm_loss is not None:
            sentences.append(
                f"{run.name}: held-out loss {run.before.lm_loss:.4f} before training; no later one yet."
            )
        elif not run.finished:
            sentences.append(f"{run.name}: nothing has been measured on held-out text yet.")
    return sentences


def _cost(run: RunRecord, baseline: RunRecord) -> str:
    assert run.after is not None and run.after.lm_loss is not None
    loss = f"held-out loss {run.after.lm_loss:.4f}"
    base = baseline.after.lm_loss if baseline.after else None
    if run is baseline or not base or not run.has_blocks_of(baseline):
        return loss
    difference = run.after.lm_loss - base
    return f"{loss}, {fixed(difference, 4, '+')} ({percent(difference / base)}) against {baseline.name}"


def ablated_findings(runs: Sequence[RunRecord]) -> list[str]:
    """One sentence for each run whose heads were removed: are they moved, are they used?"""
    return [
        sentence
        for run in runs
        if run.ablation is not None
        and (sentence := model_finding(run.ablation.record, run.ablation.model, run.name))
    ]


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
        (
            "held-out blocks (their text, length or number), so their losses are not comparable",
            lambda run: run.after.measure if run.after else None,
        ),
        ("loss before training (another model or seed)", _loss_before),
    ]
    found = [
        f"{run.name}: its last held-out measurement is from step {last:,.0f} of {run.steps:,}."
        for run in runs
        if run.steps and run.validations and (last := run.validations[-1]["step"]) < run.steps
    ]
    found += _earlier_scores(runs)
    found += [f"{run.name}: {run.state}; its numbers are of its last record." for run in runs
              if not run.finished]  # fmt: skip
    found += [f"{run.name} diverged: {run.diverged}." for run in runs if run.diverged]
    found += [_dropped(run) for run in runs if run.dropped]
    found += [unseen_words(run.name, unseen) for run in runs if (unseen := _unseen(run))]
    found += [f"{run.name}, ablation: {note}." for run in runs if run.ablation
              for note in run.ablation.model.notes]  # fmt: skip
    found += [f"{run.name}: {note}." for run in runs for note in run.notes]
    found += [*_repeated(runs), *_other_heads(runs)]
    for what, value in checks:
        known = [value(run) for run in runs]
        if len({item for item in known if item is not None}) > 1:
            odd = [run.name for run, item in zip(runs, known, strict=True) if item not in (None, known[0])]
            found.append(f"Not the same {what}: {', '.join(odd)} against {runs[0].name}.")
    return found


def _earlier_scores(runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence on runs with scores of a model before their last step."""
    for run in runs:
        scores = [one for one in run.scores or () if one.step is not None and one.step < (run.steps or 0)]
        if scores:
            tasks = first_few(list(dict.fromkeys(one.task for one in scores)))
            yield f"{run.name}: its scores on {tasks} are from step {scores[0].step:,} of {run.steps:,}."


def _other_heads(runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence on runs whose attention is that of other heads, or on other words, than the first run's."""
    measured = [run for run in runs if run.after and run.after.guided_attention is not None]
    other = [run.name for run in measured if run.has_blocks_of(runs[0]) and not run.has_heads_of(runs[0])]
    if other and runs[0] in measured:
        yield (
            f"Not the same guided heads or words: {', '.join(other)} against {runs[0].name}; their attention "
            "is not compared."
        )
    for run in measured:
        if run.before and run.before.guided_attention is not None and run.rise is None:
            yield f"{run.name}: other heads were guided before training than after; no rise is computed."


def unseen_words(name: str, patterns: Sequence[str]) -> str:
    """A sentence on patterns without a target in the held-out text."""
    return (
        f"{name}: no token of the held-out text is a target of {', '.join(patterns)}: nothing shows whether "
        "its guidance does anything."
    )


def _unseen(run: RunRecord) -> list[str]:
    """Patterns whose heads saw no target; none where the loss is not finite, as then attention is not."""
    if run.after is None or run.after.lm_loss is None:
        return []
    return list(dict.fromkeys(head.pattern for head in run.after.per_head if head.attention is None))


def _repeated(runs: Sequence[RunRecord]) -> Iterator[str]:
    """One sentence for each run that repeats an earlier one, by its numbers: losses of single precision
    that agree at every step, and on held-out text, are not chance."""
    first: dict[Any, str] = {}
    for run in runs:
        steps = tuple((row.get("step"), row.get("lm_loss", row.get("loss"))) for row in run.metrics)
        ends = tuple(None if one is None else (one.lm_loss, one.measure) for one in (run.before, run.after))
        if not steps or run.after is None or run.after.lm_loss is None:
            continue
        name = first.setdefault((steps, ends), run.name)
        if name != run.name:
            yield (
                f"{run.name} has the losses of {name} at each of {len(steps):,} logged steps and on held-out "
                "text: a copy of its run, or the same training again, which says nothing about noise."
            )


def _dropped(run: RunRecord) -> str:
    of = f" of {run.steps:,}" if run.steps else ""
    return f"{run.name}: {run.dropped:,}{of} steps were dropped because their gradient was not finite."


def tested_findings(runs: Sequence[RunRecord], tests: RunTests) -> Iterator[str]:
    """One sentence for each run about the tasks' main metrics compared with the first run."""
    for run in runs:
        main = [one for one in tests.tests if one.evaluation == run.name and one.is_main]
        tested = [one for one in main if one.p_holm is not None]
        rows = [one for one in tested if not one.is_constant]
        if tested:
            listed, moved = "; ".join(differences_shown(rows, 3)), sum(one.is_shown for one in rows)
            yield (
                f"{run.name} against {runs[0].name} on the same examples: {moved} of {len(rows)} tasks "
                f"differ beyond noise after Holm's correction{': ' + listed if moved else ''}."
                f"{constant_note(len(tested) - len(rows))}"
            )


def _loss_before(run: RunRecord) -> float | None:
    if run.before is None or run.before.lm_loss is None:
        return None
    return round(run.before.lm_loss, 3)
