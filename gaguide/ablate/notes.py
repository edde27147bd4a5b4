"""Notes for the reader of an ablation's numbers, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gaguide.ablate.request import Request
from gaguide.ablate.subjects import Subject, together
from gaguide.ablate.text import TextSums

_FEW_BLOCKS = 20


def model_notes(
    request: Request, subjects: Sequence[Subject], sums: TextSums | None, loss: float | None
) -> Iterator[str]:
    """Notes for the reader of one model's numbers; `sums` and `loss`: on held-out text, None without."""
    yield from (sums.notes if sums is not None else ())
    text = request.text
    if text is not None:
        if loss is None:
            yield "its held-out loss is not finite, so that no effect on it has a number"
        if len(text.chosen) < _FEW_BLOCKS:
            yield f"intervals and tests are over {len(text.chosen)} blocks of text only"
        repeated = len(text.chosen) - len({row.tobytes() for row in text.blocks.read(text.chosen)})
        if repeated:
            yield (
                f"{repeated} of {len(text.chosen)} blocks are the same as an earlier one; each counts, so "
                "that the intervals are too narrow"
            )
    guided = [subject for subject in subjects if subject.role == "guided"]
    if sums is not None:
        unseen = [
            f"layer {subject.layer} head {subject.head}"
            for subject in guided
            if not int(sums.readings[subject.key].queries.sum())
        ]
        if unseen:
            yield f"no query sees a target of {', '.join(unseen)} in this text"
        if any(reading.output_norm is None for reading in sums.readings.values()):
            yield "its attention's output projection is not known, so that norms are missing"
    few = [subject for subject in guided if len(subject.controls) < request.settings.controls]
    if few:
        least = min(len(subject.controls) for subject in few)
        yield f"{len(few)} heads of the plan have fewer controls than asked for, at least {least}"
    if (
        sums is not None
        and request.settings.controls
        and "controls" not in together(subjects)
        and len(guided) > 1
    ):
        yield (
            "its layers have fewer controls than heads of the plan, so that removing all of these at once is "
            "compared with no controls"
        )
    if request.tasks and "resample" in request.settings.methods:
        yield "resample is measured on text only"
