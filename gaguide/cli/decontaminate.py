"""Inputs of `gaguide data build` other than its source: the examples of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaguide.data.overlap.decontaminate import Decontamination


def find_decontamination(
    tasks: Sequence[str] | None, action: str | None, data: Path | None
) -> Decontamination | None:
    """The value of `--decontaminate`, `--decontaminate-by` and `--data`; None where no task is named.

    Raises a `UserError` with every fault of the options and of the tasks.
    """
    from gaguide.errors import Fault, FaultCollector, not_one_of
    from gaguide.files import expand_home

    with FaultCollector() as faults:
        if not tasks:
            for option, value in (("--decontaminate-by", action), ("--data", data)):
                if value is not None:
                    problem = "belongs to --decontaminate, which is not given"
                    faults.add(Fault(option, problem, "omit it, or give --decontaminate TASKS", str(value)))
            faults.raise_if_any()
            return None
        from gaguide.data.overlap.decontaminate import ACTIONS, Decontamination
        from gaguide.data.overlap.index import WordIndex
        from gaguide.evaluate.tasks.locate import split_names
        from gaguide.evaluate.tasks.texts import evaluation_texts

        chosen = next((each for each in ACTIONS if each == (action or ACTIONS[0])), None)
        if chosen is None:
            faults.add(not_one_of("--decontaminate-by", action, ACTIONS))
        folder = None if data is None else expand_home(data)
        texts = faults.attempt(evaluation_texts, split_names(tasks), folder)
        words = None if texts is None else WordIndex(texts)
        if words is not None and not words.sets:
            problem = "no example has 8 words or more, so that none can be looked for"
            faults.add(Fault("--decontaminate", problem, "omit it", ", ".join(tasks)))
    assert chosen is not None and words is not None
    return Decontamination(words, chosen)
