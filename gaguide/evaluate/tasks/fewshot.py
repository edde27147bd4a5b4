"""Few-shot prompts: the same demonstrations before every prompt of a task, drawn once from a seed.

Since they are the same, they are computed once for many examples (`rows.py`). Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from gaguide.errors import Fault, UserError
from gaguide.evaluate.tasks.examples import Example
from gaguide.evaluate.tasks.task import Fewshot, Task


def with_demonstrations(
    task: Task, fewshot: Fewshot, examples: Sequence[Example], others: Sequence[Example] | None
) -> tuple[Example, ...]:
    """`examples` with demonstrations before their prompts.

    others: where demonstrations are drawn from; None draws them from `examples`, and leaves those out of the
    result. Raises `UserError` where there are too few, or where one has no answer.
    """
    source = examples if others is None else others
    needed = fewshot.count + (others is None)
    if len(source) < needed:
        problem = f"{fewshot.count} demonstrations are asked for, there are {len(source)} examples"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "ask for fewer", fewshot.count))
    drawn = random.Random(fewshot.seed).sample(range(len(source)), fewshot.count)
    texts = [_demonstration(task, source[at]) for at in drawn]
    before = "".join(text + fewshot.separator for text in texts)
    asked = examples if others is not None else [e for at, e in enumerate(examples) if at not in set(drawn)]
    return tuple(
        replace(example, prompts=tuple(before + prompt for prompt in example.prompts)) for example in asked
    )


def _demonstration(task: Task, example: Example) -> str:
    """A prompt with its right answer."""
    if example.number is not None:
        return f"{example.prompts[0]}{task.delimiter or ' '}{example.number:g}"
    if len(example.continuations) == 1:
        return example.prompts[0] + example.continuations[0]
    if example.answer_index is None:
        problem = f"example {example.id} has no answer that a demonstration could show"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "give answer_index, or no fewshot"))
    return example.prompts[0] + example.continuations[example.answer_index]
