"""Few-shot prompts: the same demonstrations before every prompt of a task, drawn once from a seed.

The prompts then share a long prefix, which is computed once for many of them. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from gaguide.errors import Fault, UserError
from gaguide.evaluate.tasks.examples import Example
from gaguide.evaluate.tasks.task import Fewshot, Task


def with_demonstrations(
    task: Task, fewshot: Fewshot, examples: Sequence[Example], pool: Sequence[Example] | None
) -> tuple[Example, ...]:
    """`examples` with demonstrations before their prompts.

    pool: what demonstrations are drawn from; None draws from `examples` and removes the drawn ones from the
    result. Raises `UserError` where there are too few, or where one has no answer.
    """
    source = examples if pool is None else pool
    needed = fewshot.count + (pool is None)
    if len(source) < needed:
        problem = f"asks for {fewshot.count} demonstrations, but there are {len(source)} examples"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "ask for fewer", fewshot.count))
    drawn = random.Random(fewshot.seed).sample(range(len(source)), fewshot.count)
    prefix = "".join(_demonstration(task, source[at]) + fewshot.separator for at in drawn)
    asked = examples if pool is not None else [e for at, e in enumerate(examples) if at not in set(drawn)]
    return tuple(
        replace(example, prompts=tuple(prefix + prompt for prompt in example.prompts)) for example in asked
    )


def _demonstration(task: Task, example: Example) -> str:
    """A prompt with its right answer."""
    if example.number is not None:
        return f"{example.prompts[0]}{task.delimiter or ' '}{example.number:g}"
    if len(example.continuations) == 1:
        return example.prompts[0] + example.continuations[0]
    if example.answer_index is None:
        problem = f"example {example.id} has no answer to demonstrate"
        raise UserError(Fault(f"task {task.name}: fewshot", problem, "give answer_index, or remove fewshot"))
    return example.prompts[0] + example.continuations[example.answer_index]
